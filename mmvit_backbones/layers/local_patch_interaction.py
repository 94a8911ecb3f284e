"""Explicit exchange between neighbouring tokens.

Legend: B batch, H x W tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.conv_norm import conv_norm
from mmvit_backbones.layers.layer_scale import fold_scale
from mmvit_backbones.layers.layout import channels_first, channels_last
from mmvit_backbones.layers.norm import build_norm


class LocalPatchInteraction(nn.Module):
    """Two depth-wise convolutions, LPI (XCiT, arXiv 2106.09681, section 3.3).

    Args:
        dims: Channels.
        norm_cfg: Norm between the convolutions.
        norm_first: Norm before the activation (vit-pytorch's structure) instead of after it (the
            authors' code).
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
        self.conv1 = nn.Conv2d(dims, dims, kernel_size, padding=padding, groups=dims)
        self.bn = build_norm(norm_cfg, dims)
        self.conv2 = nn.Conv2d(dims, dims, kernel_size, padding=padding, groups=dims)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Mix the neighbours of a map (B, H, W, C), channel by channel.

        Args:
            x: The map.
            scale: LayerScale, a factor of each channel of the output (C).
        """
        x = channels_first(x)
        if self.norm_first:
            x = conv_norm(x, self.conv1, self.bn, activate=True)
        else:
            x = self.bn(conv_norm(x, self.conv1, activate=True))
        weight, bias = fold_scale(self.conv2, scale)
        x = F.conv2d(x, weight, bias, padding=self.conv2.padding, groups=self.conv2.groups)
        return channels_last(x)
