"""Cutting a grid of tokens into windows against indexing by hand, and when it is done."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from mmvit_backbones.kernels.modes import COMPILE, TRAINING
from mmvit_backbones.kernels.windows import Tiling, refusal
from mmvit_backbones.layers.window_attention import WindowAttention


@pytest.mark.parametrize('size', [(6, 9), (7, 9), (6, 11), (8, 10), (2, 2), (1, 7)])
def test_windows_hold_neighbours(size: tuple[int, int]) -> None:
    height, width = size
    tokens = torch.arange(2 * height * width).view(2, height * width, 1)
    whole = tokens.view(2, height, width)
    expected = []
    for bottom in range(0, height, 3):
        for right in range(0, width, 3):
            window = whole[:, bottom : bottom + 3, right : right + 3]
            expected += [tuple(of_image.flatten().tolist()) for of_image in window]
    tiling = Tiling.of_grid(*size, window_size=3)
    rows = tiling.gather(tokens, tokens.dtype)
    found = [tuple(w) for part in tiling.split(rows) for w in part.squeeze(2).tolist()]
    assert sorted(found) == sorted(expected)
    assert torch.equal(tiling.scatter(rows, tokens.dtype), tokens)


@pytest.mark.parametrize(
    ('mode', 'device', 'dtype', 'size', 'trains', 'serves'),
    [
        (COMPILE, 'cpu', torch.float32, (7, 14), True, False),
        (COMPILE, 'cpu', torch.float32, (7, 14), False, True),
        (COMPILE, 'cpu', torch.bfloat16, (7, 14), True, True),
        (COMPILE, 'cpu', torch.bfloat16, (7, 15), True, False),
        (COMPILE, 'cpu', torch.bfloat16, (7, 15), False, True),
        (COMPILE, 'meta', torch.float32, (7, 15), True, True),
        (TRAINING, 'cpu', torch.float32, (7, 15), True, True),
    ],
)
def test_graphs_with_gradients(
    mode: str, device: str, dtype: torch.dtype, size: tuple[int, int], trains: bool, serves: bool
) -> None:
    layer = WindowAttention(16, 2, 8, window_size=7)
    x = torch.empty(1, prod(size), 16, device=device, dtype=dtype)
    with torch.set_grad_enabled(trains):
        reason = refusal(mode, x, nn.LayerNorm(16), layer, size)
    assert (reason is None) == serves
