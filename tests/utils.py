"""What several tests need."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mmvit_backbones import kernels


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and BatchNorm statistic a random value of a sensible size.

    Default initial values (ones, zeros, 1e-5) would hide a norm, bias or scale in the wrong place.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.ndim > 1 and min(value.shape[:2]) > 1:
                fan_in = value[0].numel()
                value.copy_(noise / fan_in**0.5)
            elif name.endswith('bias'):
                value.copy_(0.2 * noise)
            else:  # scales, variances, temperatures: positive
                value.copy_(1 + 0.2 * noise.tanh())
    return module


def max_error(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert ours.shape == reference.shape, f'{tuple(ours.shape)} against {tuple(reference.shape)}'
    return float((ours - reference).detach().abs().max()) if ours.numel() else 0.0


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names, same bits."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def as_maps(outputs: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the outputs of a backbone or a classifier as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def assert_close(ours: object, expected: object, tolerance: float = 1e-5) -> None:
    """Compare outputs; the tolerance is relative to the largest value."""
    for a, b in zip(as_maps(ours), as_maps(expected), strict=True):
        assert max_error(a, b) <= tolerance * max(1, float(b.detach().abs().max()))


def loss_of(outputs: Tensor | Iterable[Tensor]) -> Tensor:
    """Return a loss to which every output contributes."""
    return sum((out.square().mean() for out in as_maps(outputs)), torch.zeros(()))


def count_saved(function: Callable[[], object]) -> int:
    """Count the numbers that a function saves for backward, each memory once."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = function()
    del graph
    return sum(saved.values())


def run_paths(model: nn.Module, *inputs: object) -> set[str]:
    """Return the names of the paths that the layers of a model take: kernels, `'reference'`."""
    return {path.path for path in kernels.explain(model, *inputs)}


def check_compiled(model: nn.Module, sizes: Sequence[tuple[int, int]]) -> None:
    """Compile a model without breaks, and at most once more when the image size changes.

    Args:
        model: Model in double precision, from images to maps.
        sizes: Height and width of the images to compare outputs and gradients on.
    """
    backend = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for size in sizes:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        results = []
        for function in (compiled, model):
            maps = function(x)
            loss = sum(m.square().sum() for m in maps)
            results.append([*maps, *torch.autograd.grad(loss, list(model.parameters()))])
        for ours, expected in zip(*results, strict=True):
            assert max_error(ours, expected) <= 1e-9 * max(1, float(expected.detach().abs().max()))
    assert backend.frame_count <= 2


def check_autocast(model: nn.Module, dtype: torch.dtype) -> None:
    """Under autocast, be as close to double precision as the reference is.

    How the roundings of one image fall is chance: single images differ by a third either way. So
    several count, and the errors of single gradients get more room. Gradients through max pooling
    are not compared: which of two equal values is the largest is chance too.
    """
    x = torch.randn(6, 3, 97, 125, generator=torch.manual_seed(0))
    strides: Any = model.out_strides
    num_pooled = sum(stride > getattr(model, 'patch_size', stride) for stride in strides)

    def run(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            maps = [m.double() for m in model(x)]
        losses = [m.square().mean() for m in maps]
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(sum(losses), parameters, retain_graph=True)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        compared = sum(losses[: len(losses) - num_pooled])
        gradients = torch.autograd.grad(compared, parameters, allow_unused=True)
        outputs = torch.cat([m.detach().flatten() for m in maps])
        return outputs, [g.double() for g in gradients if g is not None]

    ours, our_gradients = run(x, dtype)
    with kernels.use('reference'):
        plain, plain_gradients = run(x, dtype)
        model.double()
        exact, exact_gradients = run(x.double())
    assert float((ours - exact).norm()) <= 1.1 * float((plain - exact).norm())

    def typical_error(gradients: list[Tensor]) -> float:
        return median(
            float((gradient - exact).norm() / exact.norm())
            for gradient, exact in zip(gradients, exact_gradients, strict=True)
        )

    assert typical_error(our_gradients) <= 2 * typical_error(plain_gradients)


def load_tool(name: str) -> ModuleType:
    """Import a program of tools/, once."""
    if name not in sys.modules:
        path = Path(__file__).parents[1] / f'tools/{name}.py'
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
