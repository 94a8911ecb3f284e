"""Norms of (B, C, H, W) maps chosen by an OpenMMLab `norm_cfg`.

Legend: B batch, C channels, H x W tokens or pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.permute(0, 3, 1, 2)


def build_norm(norm_cfg: Mapping[str, Any], channels: int) -> nn.Module:
    """Build the norm of a map.

    Args:
        norm_cfg: `dict(type=...)` with `'BN'`, `'SyncBN'`, `'GN'`, `'LN'` (over the channels) or
            another norm that mmcv knows, and that norm's settings.
        channels: Channels of the map.

    Raises:
        ValueError: If `norm_cfg` is not a dict with a type.
    """
    if not isinstance(norm_cfg, Mapping) or 'type' not in norm_cfg:
        raise ValueError(f'norm_cfg must be a dict with the key "type", got {norm_cfg!r}')
    if norm_cfg['type'] == 'LN':  # mmcv's norms the last dimension, which is the width here
        norm_cfg = {**norm_cfg, 'type': ChannelLayerNorm}
    return build_norm_layer(dict(norm_cfg), channels)[1]


def norm_map(x: Tensor, norm: nn.Module) -> Tensor:
    """Norm the channels of a map (B, H, W, C).

    The norm sees a row of tokens: a compiler then keeps them in their order in memory.
    """
    return norm(x.flatten(1, 2)).view(x.shape)
