"""Explicit exchange between neighbouring tokens.

Legend: B batch, H x W = N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.folding import Scale, fold_batch_norm, fold_scale
from mmvit_backbones.layers.norm import build_norm
from mmvit_backbones.layers.tokens import Size, to_map, to_tokens


class LocalPatchInteraction(nn.Module):
    """Two depth-wise convolutions, LPI (XCiT, arXiv 2106.09681, section 3.3).

    Args:
        dims: Channels.
        norm_cfg: Norm between the convolutions.
        norm_first: Normalize before the activation (variant `'vit-pytorch'`) instead of after it
            (the authors' code).
        kernel_size: Side of both kernels, odd.

    Raises:
        ValueError: If `kernel_size` is even.
    """

    def __init__(
        self,
        dims: int,
        norm_cfg: Mapping[str, Any],
        norm_first: bool = False,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f'lpi_kernel_size must be odd, got {kernel_size}')
        self.norm_first = norm_first
        padding = kernel_size // 2
        self.conv1: nn.Module = nn.Conv2d(dims, dims, kernel_size, padding=padding, groups=dims)
        self.bn = build_norm(norm_cfg, dims)
        self.conv2 = nn.Conv2d(dims, dims, kernel_size, padding=padding, groups=dims)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Mix neighbouring tokens (B, N, C) of a grid of `size` (H, W), channel by channel."""
        x = self.conv1(to_map(x, size))
        x = F.gelu(self.bn(x)) if self.norm_first else self.bn(F.gelu(x))
        return to_tokens(self.conv2(x))

    def fold(self) -> None:
        """Move a BatchNorm that directly follows the first convolution into it."""
        if self.norm_first:
            self.conv1, self.bn = fold_batch_norm(self.conv1, self.bn)

    def fold_scale(self, scale: Scale) -> Scale:
        """Move the LayerScale after this layer into it; returns the scale that is left."""
        return fold_scale(self.conv2, scale)
