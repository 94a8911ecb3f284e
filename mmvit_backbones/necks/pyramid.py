"""From maps of one stride to a pyramid.

Legend: B batch, C channels, H x W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvit_backbones.layers.norm import build_norm
from mmvit_backbones.registry import MODELS

PYRAMID_STRIDES = (4, 8, 16, 32)


def double(dims: int) -> nn.ConvTranspose2d:
    """Build a transposed convolution that doubles the sides of a map."""
    return nn.ConvTranspose2d(dims, dims, kernel_size=2, stride=2)


@MODELS.register_module()
class DeconvPoolPyramid(BaseModule):
    """Transposed convolutions and max pooling to strides 4, 8, 16, 32.

    As in the XCiT authors' code for detection and segmentation
    (https://github.com/facebookresearch/xcit, `detection/backbone/xcit.py`), which has no norm on
    any output either.

    Args:
        in_channels: Channels of every map, in and out.
        stride: Stride of the maps that come in, 8 or 16.
        norm_cfg: Norm between the two transposed convolutions that stride 16 needs.
        init_cfg: What MMEngine's `init_weights()` shall do.

    Raises:
        ValueError: If `stride` is neither 8 nor 16.

    Shape:
        Input: four maps (B, C, ceil(H / stride), ceil(W / stride)). Output: four maps
        (B, C, ceil(H / s), ceil(W / s)) for s in 4, 8, 16, 32.
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
            self.fpn1 = nn.Sequential(double(in_channels), norm, nn.GELU(), double(in_channels))
            self.fpn2: nn.Module = nn.Sequential(double(in_channels))
        else:
            self.fpn1 = nn.Sequential(double(in_channels))
            self.fpn2 = nn.Identity()

    def forward(
        self, maps: Sequence[Tensor], image_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Resample each map to its stride.

        Args:
            maps: Four maps of stride `stride`, finest output first.
            image_size: Height and width of the image in pixels, to cut off what the finer maps
                hold beyond its border; by default the maps cover the image exactly.

        Raises:
            ValueError: If there are not four maps or they do not fit `image_size`.
        """
        if len(maps) != len(PYRAMID_STRIDES):
            raise ValueError(f'maps must be {len(PYRAMID_STRIDES)}, got {len(maps)}')
        rows, columns = maps[0].shape[2:]
        height, width = image_size or (rows * self.stride, columns * self.stride)
        if (-(-height // self.stride), -(-width // self.stride)) != (rows, columns):
            raise ValueError(
                f'image_size {height} x {width} does not fit maps of {rows} x {columns} at stride '
                f'{self.stride}'
            )
        return (
            self.fpn1(maps[0])[..., : -(-height // 4), : -(-width // 4)],
            self.fpn2(maps[1])[..., : -(-height // 8), : -(-width // 8)],
            self._pool(maps[2], 16),
            self._pool(maps[3], 32),
        )

    def _pool(self, x: Tensor, stride: int) -> Tensor:
        ratio = stride // self.stride
        return F.max_pool2d(x, ratio, ratio, ceil_mode=True) if ratio > 1 else x
