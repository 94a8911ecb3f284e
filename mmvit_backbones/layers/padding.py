"""Padding of maps on the bottom and right, the only sides this package pads.

Legend: B batch, H x W tokens or pixels, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad a map so that its sides are multiples of a number.

    Args:
        x: Map with channels last (B, H, W, C).
        multiple: What both sides must be multiples of.

    Returns:
        The padded map, or `x` itself where nothing has to be added.
    """
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if bottom == 0 and right == 0:
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))
