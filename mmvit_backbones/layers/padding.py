"""Padding of maps on the bottom and right, the only sides this package pads.

Legend: B batch, H x W tokens or pixels, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value


def is_dynamic(*sizes: int) -> bool:
    """Whether a graph is compiled for any of these sizes, so that no branch may depend on them."""
    return torch.compiler.is_compiling() and not all(has_static_value(size) for size in sizes)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad a map so that its sides are multiples of a number.

    Args:
        x: Map (B, C, H, W).
        multiple: What both sides must be multiples of.

    Returns:
        The padded map, or `x` itself where nothing has to be added.
    """
    height, width = x.shape[2:]
    bottom = -(-height // multiple) * multiple - height
    right = -(-width // multiple) * multiple - width
    if not is_dynamic(height, width) and bottom == 0 and right == 0:
        return x
    return F.pad(x, (0, right, 0, bottom))


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cut padding off a map (B, H, W, C)."""
    if not is_dynamic(height, width):
        return x[:, :height, :width]
    # A slice's layout, and with it the graph, depends on whether anything is cut off.
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    return x.index_select(1, rows).index_select(2, columns)
