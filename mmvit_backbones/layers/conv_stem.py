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

# Patch size -> strides of the convolutions. 4: weights for 16 fine-tuned on small images
# (Debenedetti et al., https://arxiv.org/abs/2209.07399).
STRIDES = {4: (1, 1, 2, 2), 8: (2, 2, 2), 16: (2, 2, 2, 2)}


class ConvStem(nn.Module):
    """Strided 3x3 convolutions with a norm each, GELU between (XCiT, arXiv 2106.09681, section 4).

    Channels double with each convolution. A padding of 1 makes every step round sizes up, so that
    no pixel is lost.

    Args:
        in_channels: Channels of the image.
        dims: Channels of the tokens.
        patch_size: Stride of all convolutions together, 4, 8 or 16.
        norm_cfg: Norm after each convolution.

    Raises:
        ValueError: If `patch_size` is not 4, 8 or 16, or `dims` no multiple of
            2^(convolutions - 1).
    """

    def __init__(
        self, in_channels: int, dims: int, patch_size: int, norm_cfg: Mapping[str, Any]
    ) -> None:
        super().__init__()
        if patch_size not in STRIDES:
            raise ValueError(
                f'patch_size must be one of {tuple(STRIDES)} with a convolutional stem, '
                f'got {patch_size}'
            )
        strides = STRIDES[patch_size]
        narrowing = 2 ** (len(strides) - 1)  # times fewer channels than the tokens have
        if dims % narrowing:
            raise ValueError(
                f'embed_dims must be a multiple of {narrowing} with patch_size {patch_size}, '
                f'got {dims}'
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for i, stride in enumerate(strides):
            wider = dims // narrowing * 2**i
            conv = nn.Conv2d(channels, wider, 3, stride, padding=1, bias=False)
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
