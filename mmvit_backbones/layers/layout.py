"""Views between the two orders of a map's dimensions.

Convolutions take maps as (B, C, H, W), everything else as tokens or (B, H, W, C); in memory the
channels always come last. Inductor takes the second of four dimensions for the channels in all that
comes before a convolution, and would reorder the memory of (B, H, W, C) maps, unless such a view
serves once and only to be viewed as tokens (B, HW, C) again. So operations work on tokens.
"""

from __future__ import annotations

from torch import Tensor

from mmvit_backbones.layers.lean import is_traced


def channels_first(x: Tensor) -> Tensor:
    """View a map (B, H, W, C) as (B, C, H, W)."""
    if is_traced():
        return x.flatten(1, 2).transpose(1, 2).unflatten(2, x.shape[1:3])
    return x.permute(0, 3, 1, 2)  # the batch dimension keeps its stride, which oneDNN looks at


def channels_last(x: Tensor) -> Tensor:
    """View a map (B, C, H, W) as (B, H, W, C)."""
    if is_traced():
        return x.flatten(2).transpose(1, 2).unflatten(1, x.shape[2:])
    return x.permute(0, 2, 3, 1)
