"""From pixels to tokens by overlapping convolutions.

Legend: B batch, H x W pixels, C channels, p patch size, N = ceil(H/p) ceil(W/p) tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmvit_backbones.layers.folding import fold_batch_norms
from mmvit_backbones.layers.norm import build_norm
from mmvit_backbones.layers.seam import replaceable
from mmvit_backbones.layers.tokens import Size, to_tokens

NUM_CONVS = {8: 3, 16: 4}


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions with a norm each, GELU between (XCiT, arXiv 2106.09681, section 4).

    Channels double with each convolution. A padding of 1 makes every step round sizes up, so that
    no pixel is lost.

    Args:
        in_channels: Channels of the image.
        dims: Channels of the tokens.
        patch_size: Stride of all convolutions together, 8 or 16.
        norm_cfg: Norm after each convolution.

    Raises:
        ValueError: If `patch_size` is neither 8 nor 16, or `dims` no multiple of
            2^(convolutions - 1).
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

    @replaceable
    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Embed images (B, in_channels, H, W).

        Returns:
            Tokens (B, N, C) and the rows and columns of their grid.
        """
        x = self.proj(x)
        return to_tokens(x), (x.shape[2], x.shape[3])

    def fold(self) -> None:
        """Move each BatchNorm into the convolution before it."""
        for layer in self.proj:
            if isinstance(layer, nn.Sequential):
                fold_batch_norms(layer)
