"""Norms of feature maps chosen by an OpenMMLab `norm_cfg`.

Legend: B batch, C channels, H x W tokens or pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a feature map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def build_norm(norm_cfg: Mapping[str, Any], channels: int) -> nn.Module:
    """Build the norm of a feature map.

    Args:
        norm_cfg: `dict(type=...)` with `'BN'`, `'SyncBN'`, `'GN'`, `'LN'` (over the channels) or
            another norm that mmcv knows, and that norm's settings.
        channels: Channels of the feature map.

    Raises:
        ValueError: If `norm_cfg` is not a dict with a type.
    """
    if not isinstance(norm_cfg, Mapping) or 'type' not in norm_cfg:
        raise ValueError(f'norm_cfg must be a dict with the key "type", got {norm_cfg!r}')
    if norm_cfg['type'] == 'LN':  # mmcv's normalizes the last dimension, which is the width here
        norm_cfg = {**norm_cfg, 'type': ChannelLayerNorm}
    return build_norm_layer(dict(norm_cfg), channels)[1]
