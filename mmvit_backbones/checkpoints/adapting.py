"""Fit tensors of a source to a model of other sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adapt_stem(value: Tensor, current: Tensor) -> tuple[Tensor, str] | None:
    """Fit a first convolution for 3 channels (C, 3, k, k) to another number of them.

    By timm's rule: for one channel the sum over colours, else the colours in turn, scaled so that
    the response to equal channels stays the same.

    Args:
        value: The source's weights.
        current: The model's.

    Returns:
        The adapted weights and what was done, or None if something else differs.
    """
    channels = current.shape[1]
    if value.shape != (current.shape[0], 3, *current.shape[2:]):
        return None
    weight = _at_least_float32(value)
    if channels == 1:
        adapted = weight.sum(dim=1, keepdim=True)
    else:
        repeats = -(-channels // 3)
        adapted = weight.repeat(1, repeats, 1, 1)[:, :channels] * (3 / channels)
    return adapted.to(value.dtype), f'stem adapted from 3 to {channels} channels'


def resize_position(value: Tensor, current: Tensor) -> tuple[Tensor, str] | None:
    """Interpolate a position table (1, h, w, C) bicubically, as the model does for an image.

    Args:
        value: The source's table.
        current: The model's.

    Returns:
        The adapted table and what was done, or None if the channels differ.
    """
    if value.shape[3] != current.shape[3]:
        return None
    old, new = tuple(value.shape[1:3]), tuple(current.shape[1:3])
    table = _at_least_float32(value).permute(0, 3, 1, 2)
    table = F.interpolate(table, new, mode='bicubic', align_corners=False)
    return table.permute(0, 2, 3, 1).to(value.dtype), (
        f'position table interpolated from {old} to {new}'
    )


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
