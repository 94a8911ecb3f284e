"""Views between tokens and feature maps, and padding of feature maps.

Legend: B batch, H x W = N tokens, C channels.

The channels come last in memory: a feature map viewed from tokens is in channels_last format, and
so is the output of a convolution on it. What a backbone returns is contiguous.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit_backbones.layers.seam import replaceable

Size = tuple[int, int]


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """View tokens (B, N, C) of a grid of `size` (H, W) as a feature map (B, C, H, W)."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(feature_map: Tensor) -> Tensor:
    """View a feature map (B, C, H, W) as tokens (B, N, C)."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def as_contiguous(feature_map: Tensor) -> Tensor:
    """Copy a feature map (B, C, H, W) row by row, as heads may take for granted.

    mmcv's RoIAlign does: from maps in channels_last format it mixes up places and channels, without
    a word (https://github.com/open-mmlab/mmcv/issues/2203). A copy in any case: to ask whether a
    map is contiguous specializes a graph with dynamic shapes on whether it has one row.
    """
    return feature_map.clone(memory_format=torch.contiguous_format)


def ceil_div(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return (dividend + divisor - 1) // divisor


@replaceable
def pad_to_multiple(feature_map: Tensor, multiple: int, value: float = 0.0) -> Tensor:
    """Pad a feature map (B, C, H, W) on the bottom and right to multiples of a number."""
    height, width = feature_map.shape[2:]
    # Written so that a graph with dynamic shapes sees that the sums are multiples.
    bottom = ceil_div(height, multiple) * multiple - height
    right = ceil_div(width, multiple) * multiple - width
    return F.pad(feature_map, (0, right, 0, bottom), value=value)


@replaceable
def crop(feature_map: Tensor, size: Size) -> Tensor:
    """Cut a feature map (B, C, H, W) on the bottom and right to `size`, at most its own.

    A slice would specialize a graph with dynamic shapes on whether something is cut off.
    """
    rows, columns = (torch.arange(length, device=feature_map.device) for length in size)
    return feature_map.index_select(2, rows).index_select(3, columns)
