"""From feature maps of one stride to a pyramid.

Legend: B batch, C channels, H x W tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvit_backbones.layers.folding import fold_batch_norms
from mmvit_backbones.layers.norm import build_norm
from mmvit_backbones.layers.tokens import pad_to_multiple
from mmvit_backbones.registry import MODELS

PYRAMID_STRIDES = (4, 8, 16, 32)


def upsample2x(dims: int) -> nn.ConvTranspose2d:
    """Build a transposed convolution that doubles the sides of a feature map."""
    return nn.ConvTranspose2d(dims, dims, kernel_size=2, stride=2)


@MODELS.register_module()
class DeconvPoolPyramid(BaseModule):
    """Transposed convolutions and max pooling to strides 4, 8, 16, 32.

    As in the XCiT authors' code for detection and segmentation
    (https://github.com/facebookresearch/xcit, `detection/backbone/xcit.py`), which has no norm on
    any output either.

    Args:
        in_channels: Channels of every feature map, in and out.
        stride: Stride of the incoming feature maps, 8 or 16.
        norm_cfg: Norm between the two transposed convolutions that stride 16 needs.
        init_cfg: What MMEngine's `init_weights()` shall do.

    Raises:
        ValueError: If `stride` is neither 8 nor 16.

    Shape:
        Input: four feature maps (B, C, H, W) of stride `stride`. Output: four feature maps
        (B, C, ceil(H * stride / s), ceil(W * stride / s)) for s in 4, 8, 16, 32.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int = 16,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if stride not in (8, 16):
            raise ValueError(f'stride must be 8 or 16, got {stride}')
        self.stride = stride
        if stride == 16:
            norm = build_norm(norm_cfg, in_channels)
            self.fpn1 = nn.Sequential(
                upsample2x(in_channels), norm, nn.GELU(), upsample2x(in_channels)
            )
            self.fpn2: nn.Module = nn.Sequential(upsample2x(in_channels))
        else:
            self.fpn1 = nn.Sequential(upsample2x(in_channels))
            self.fpn2 = nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Resample each of four feature maps to its stride, the finest first.

        Raises:
            ValueError: If there are not four feature maps.
        """
        if len(maps) != len(PYRAMID_STRIDES):
            raise ValueError(f'maps must be {len(PYRAMID_STRIDES)}, got {len(maps)}')
        return (
            self.fpn1(maps[0]),
            self.fpn2(maps[1]),
            self._pool(maps[2], 16),
            self._pool(maps[3], 32),
        )

    def _pool(self, x: Tensor, stride: int) -> Tensor:
        ratio = stride // self.stride
        if ratio == 1:
            return x
        return F.max_pool2d(pad_to_multiple(x, ratio, float('-inf')), ratio)

    def fold(self) -> None:
        """Move the BatchNorm between the transposed convolutions into the first."""
        fold_batch_norms(self.fpn1)
