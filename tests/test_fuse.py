"""Fused copies compute the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmvit_backbones import TwinsSVT, XCiT, fuse, kernels
from tests.models import MODELS, SMALL, TWINS, XCIT
from tests.utils import as_maps, max_error, randomize


@pytest.mark.parametrize('mode', ['auto', 'reference'])
@pytest.mark.parametrize('name', MODELS)
def test_fused_copy_computes_the_same(name: str, mode: str) -> None:
    model = randomize(MODELS[name]()).eval()
    before = copy.deepcopy(model.state_dict())
    with kernels.use(mode), torch.no_grad():
        fused = fuse(model)
        twice = fuse(fused)
        for size in [(64, 96), (75, 131)]:
            x = torch.randn(2, 3, *size)
            outputs, again = as_maps(fused(x)), as_maps(twice(x))
            assert all(map(torch.equal, again, outputs))
            for ours, reference in zip(outputs, as_maps(model(x)), strict=True):
                assert max_error(ours, reference) <= 1e-5 * max(1, float(reference.abs().max()))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(p.requires_grad for p in fused.parameters())


def test_fusing_costs_no_accuracy_under_bfloat16() -> None:
    """Fused and unfused outputs may differ by far, and are equally far from float64.

    A LayerNorm over two channels is the sign of their difference. Where they are nearly equal,
    a rounding flips it: single tokens of the third map are wrong by 2, with fusing or without. So
    the test compares what is typical of several models.
    """
    arch = dict(TWINS, embed_dims=(21, 22, 2, 3), num_heads=(1, 2, 2, 3), sr_ratios=(1, 7, 7, 1))
    errors: dict[str, list[list[float]]] = {'fused': [], 'unfused': []}
    for seed in range(5):
        model = randomize(TwinsSVT(arch), seed).eval()
        models = {'fused': fuse(model), 'unfused': copy.deepcopy(model)}
        x = torch.randn(1, 3, 96, 128, generator=torch.manual_seed(seed))
        with torch.no_grad(), kernels.use('auto'):
            exact = model.double()(x.double())
            for name, other in models.items():
                with torch.autocast('cpu', torch.bfloat16):
                    outputs = other(x)
                errors[name].append(
                    [
                        float((ours - reference).norm() / reference.norm())
                        for ours, reference in zip(outputs, exact, strict=True)
                    ]
                )
    typical = {name: torch.tensor(values).median(dim=0).values for name, values in errors.items()}
    assert bool((typical['fused'] <= 2 * typical['unfused']).all()), typical
    assert float(typical['unfused'].max()) < 0.01


class Wrapper(nn.Module):
    """A user's own layer around one of ours."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: object) -> torch.Tensor:
        return self.layer(*args)


@pytest.mark.parametrize('attribute', ['attn', 'mlp', 'local_mp'])
@pytest.mark.parametrize('name', ['twins', 'xcit'])
def test_branches_around_foreign_layers_stay_as_they_are(name: str, attribute: str) -> None:
    model = randomize(SMALL[name]()).eval()
    block = model.blocks[0][0] if name == 'twins' else model.blocks[0]
    if not hasattr(block, attribute):
        pytest.skip('Twins-SVT has no such layer')
    setattr(block, attribute, Wrapper(getattr(block, attribute)))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(as_maps(fuse(model)(x)), as_maps(model(x)), strict=True):
            assert max_error(ours, expected) <= 1e-5 * max(1, float(expected.abs().max()))


def test_what_is_folded() -> None:
    fused = fuse(XCiT(XCIT))
    assert not any('gamma' in key for key in fused.state_dict())
    # What is left are the norms between activation and convolution, whose shift meets padding.
    kept = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(kept) == 5


class Scaled(nn.Module):
    """An adapter without a `weight`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * self.base(x)


@pytest.mark.parametrize('kind', ['adapter', 'hook'])
@pytest.mark.parametrize('name', SMALL)
def test_adapted_and_hooked_layers_stay_as_they_are(name: str, kind: str) -> None:
    model = randomize(SMALL[name]()).eval()
    block = next(m for m in model.modules() if hasattr(m, 'mlp'))
    calls: list[int] = []
    if kind == 'adapter':
        block.mlp.fc1, block.mlp.fc2 = Scaled(block.mlp.fc1), Scaled(block.mlp.fc2)
    else:
        for layer in (block.mlp.fc1, block.mlp.fc2):
            layer.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad(), kernels.use('auto'):
        for ours, reference in zip(fuse(model)(x), model(x), strict=True):
            assert max_error(ours, reference) <= 1e-5 * max(1, float(reference.abs().max()))
    assert len(calls) == (4 if kind == 'hook' else 0)


@pytest.mark.filterwarnings('ignore:.*torch.ao.quantization.*:DeprecationWarning')
@pytest.mark.filterwarnings('ignore:.*quantized tensor creation functions:UserWarning')
@pytest.mark.parametrize('name', SMALL)
def test_fused_model_can_be_quantized(name: str) -> None:
    model = randomize(SMALL[name]()).eval()
    quantized = torch.ao.quantization.quantize_dynamic(fuse(model), {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad(), kernels.use('auto'):
        for ours, expected in zip(quantized(x), model(x), strict=True):
            assert 0 < float((ours - expected).norm() / expected.norm()) < 0.1
