"""Cutting a grid of tokens into windows against indexing by hand."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones.kernels.windows import Tiling


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
