"""What several tests need."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mmvit_backbones.layers import lean


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
    return float((ours - reference).detach().abs().max())


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


def check_autocast(model: nn.Module, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, be as close to double precision as plain layers and autograd are."""
    x = torch.randn(2, 3, 97, 125)

    def run(x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            maps = [m.double() for m in model(x)]
        gradients = torch.autograd.grad(
            sum(m.square().mean() for m in maps), list(model.parameters())
        )
        return [torch.cat([v.detach().flatten().double() for v in vs]) for vs in (maps, gradients)]

    ours = run(x, dtype)
    monkeypatch.setattr(lean, 'is_traced', lambda: True)
    plain = run(x, dtype)
    model.double()
    for exact, our, reference in zip(run(x.double()), ours, plain, strict=True):
        assert bool(our.isfinite().all())
        assert float((our - exact).norm()) <= 1.1 * float((reference - exact).norm())
