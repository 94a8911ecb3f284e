"""From pixels to tokens by overlapping convolutions.

Legend: B batch, H x W pixels, C channels, p patch size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmvit_backbones.layers.conv_norm import conv_norm
from mmvit_backbones.layers.layout import channels_last
from mmvit_backbones.layers.norm import build_norm

NUM_CONVS = {8: 3, 16: 4}


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions with norm and GELU between (XCiT, arXiv 2106.09681, section 4).

    Channels double with each convolution. A padding of 1 makes every step round sizes up, so that
    no pixel is lost.

    Args:
        in_channels: Channels of the image.
        dims: Channels of the tokens.
        patch_size: Stride of all convolutions together, 8 or 16.
        norm_cfg: Norm after each convolution.

    Raises:
        ValueError: If `patch_size` is neither 8 nor 16, or too few halvings of `dims` are whole.
    """

    def __init__(
        self, in_channels: int, dims: int, patch_size: int, norm_cfg: Mapping[str, Any]
    ) -> None:
        super().__init__()
        if patch_size not in NUM_CONVS:
            raise ValueError(
                f'patch_size must be one of {tuple(NUM_CONVS)} with a convolutional stem, '
                f'got {patch_size}'
            )
        num_convs = NUM_CONVS[patch_size]
        if dims % 2 ** (num_convs - 1):
            raise ValueError(
                f'embed_dims must be a multiple of {2 ** (num_convs - 1)} with patch_size '
                f'{patch_size}, got {dims}'
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for i in range(num_convs):
            wider = dims // 2 ** (num_convs - 1 - i)
            conv = nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, build_norm(norm_cfg, wider)), nn.GELU()]
            channels = wider
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Embed images (B, in_channels, H, W) as tokens (B, ceil(H/p), ceil(W/p), dims)."""
        x = x.contiguous(memory_format=torch.channels_last)
        *before, last = cast('Iterable[tuple[nn.Conv2d, nn.Module]]', self.proj[::2])
        for conv, norm in before:
            x = conv_norm(x, conv, norm, activate=True)
        return channels_last(conv_norm(x, *last))
