"""Cutting into windows and joining against indexing by hand and plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmvit_backbones.layers import windows as windows_module
from mmvit_backbones.layers.windows import Tiling, join_windows, norm_qkv
from tests.utils import max_error, randomize

SIZES = pytest.mark.parametrize('size', [(6, 9), (7, 9), (6, 11), (8, 10), (2, 2), (1, 7)])
TRACED = pytest.mark.parametrize('traced', [False, True])


def tile(size: tuple[int, int]) -> Tiling:
    return Tiling.cut_at_border(*size, window_size=3)


@SIZES
def test_windows_hold_neighbours(size: tuple[int, int]) -> None:
    height, width = size
    tokens = torch.arange(2 * height * width).view(2, height * width, 1)
    whole = tokens.view(2, height, width)
    expected = []
    for bottom in range(0, height, 3):
        for right in range(0, width, 3):
            window = whole[:, bottom : bottom + 3, right : right + 3]
            expected += [tuple(of_image.flatten().tolist()) for of_image in window]
    tiling = tile(size)
    rows = tiling.gather(tokens, tokens.dtype)
    found = [tuple(w) for part in tiling.split(rows) for w in part.squeeze(2).tolist()]
    assert sorted(found) == sorted(expected)
    assert torch.equal(tiling.scatter(rows, tokens.dtype), tokens)


@SIZES
@TRACED
def test_joining_undoes_cutting(
    size: tuple[int, int], traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiling = tile(size)
    tokens = torch.randn(2, size[0] * size[1], 8)
    parts = [
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in tiling.split(tiling.gather(tokens, tokens.dtype))
    ]
    monkeypatch.setattr(windows_module, 'is_traced', lambda: traced)
    assert torch.equal(join_windows(parts, tiling), tokens)


@SIZES
@TRACED
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('frozen', [False, True])
def test_equals_plain_autograd(
    size: tuple[int, int],
    traced: bool,
    autocast: bool,
    frozen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = randomize(nn.ModuleDict(dict(norm=nn.LayerNorm(6), qkv=nn.Linear(6, 24))))
    layers.norm.requires_grad_(not frozen)
    dtype = torch.float32 if autocast else torch.float64
    layers = layers.to(dtype)
    tiling = tile(size)
    x = torch.randn(2, size[0] * size[1], 6, dtype=dtype, requires_grad=True)
    factors = torch.randn(2, size[0] * size[1], 8, dtype=dtype)

    def fast() -> Tensor:
        parts = norm_qkv(x, layers.norm, layers.qkv, 2, tiling)
        return join_windows([q.sin() + 2 * k.cos() + v for q, k, v in parts], tiling)

    def plain() -> Tensor:
        q, k, v = layers.qkv(layers.norm(x)).chunk(3, dim=-1)
        return q.sin() + 2 * k.cos() + v

    monkeypatch.setattr(windows_module, 'is_traced', lambda: traced)
    trained = [x, *(p for p in layers.parameters() if p.requires_grad)]
    results = []
    for function in (fast, plain):
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            out = function()
        results.append([out, *torch.autograd.grad((factors * out).sum(), trained)])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        tolerance = 0.03 if autocast else 1e-12
        assert max_error(ours, expected) <= tolerance * float(expected.detach().abs().max())
