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
from mmvit_backbones.layers.tokens import as_contiguous, pad_to_multiple
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
        norm_cfg: Norm between the two transposed convolutions that stride 16 needs for stride 4.
        init_cfg: What MMEngine's `init_weights()` shall do.
        out_strides: (4, 8, 16, 32), or (8, 16, 32) for heads that read no feature map of stride 4.

    Raises:
        ValueError: If `stride` is neither 8 nor 16, or `out_strides` is neither of the two.

    Shape:
        Input: as many feature maps (B, C, H, W) of stride `stride` as there are `out_strides`.
        Output: feature maps (B, C, ceil(H * stride / s), ceil(W * stride / s)) for s in
        `out_strides`.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int = 16,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        init_cfg: dict | list[dict] | None = None,
        out_strides: Sequence[int] = PYRAMID_STRIDES,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if stride not in (8, 16):
            raise ValueError(f'stride must be 8 or 16, got {stride}')
        if tuple(out_strides) not in (PYRAMID_STRIDES, PYRAMID_STRIDES[1:]):
            raise ValueError(
                f'out_strides must be {PYRAMID_STRIDES} or {PYRAMID_STRIDES[1:]}, got {out_strides}'
            )
        self.stride = stride
        self.out_strides = tuple(out_strides)
        self.fpn1: nn.Sequential | None = None
        if 4 in self.out_strides:
            self.fpn1 = nn.Sequential(upsample2x(in_channels))
            if stride == 16:
                norm = build_norm(norm_cfg, in_channels)
                self.fpn1.extend([norm, nn.GELU(), upsample2x(in_channels)])
        self.fpn2 = nn.Sequential(upsample2x(in_channels)) if stride == 16 else nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Resample each feature map to its stride, the finest first.

        Raises:
            ValueError: If there are not as many feature maps as strides.
        """
        if len(maps) != len(self.out_strides):
            raise ValueError(f'maps must be {len(self.out_strides)}, got {len(maps)}')
        fine = () if self.fpn1 is None else (as_contiguous(self.fpn1(maps[0])),)
        *_, eighth, sixteenth, last = maps
        return (
            *fine,  # copied before the next is computed, so that two large maps are the peak
            as_contiguous(self.fpn2(eighth)),
            as_contiguous(self._pool(sixteenth, 16)),
            as_contiguous(self._pool(last, 32)),
        )

    def _pool(self, x: Tensor, stride: int) -> Tensor:
        ratio = stride // self.stride
        if ratio == 1:
            return x
        return F.max_pool2d(pad_to_multiple(x, ratio, float('-inf')), ratio)

    def fold(self) -> None:
        """Move the BatchNorm between the transposed convolutions into the first."""
        if self.fpn1 is not None:
            fold_batch_norms(self.fpn1)
