"""Pooling of Twins-SVT for classification.

Legend: B batch, C channels, H x W tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvit_backbones.registry import MODELS


@MODELS.register_module()
class NormAveragePooling(BaseModule):
    """LayerNorm of every token of the last feature map, then their mean (arXiv 2104.13840).

    Args:
        in_channels: Channels of the feature map.
        norm: Normalize the tokens; the package vit-pytorch does not.
        norm_eps: Epsilon of the norm.
        init_cfg: What MMEngine's `init_weights()` shall do.
    """

    def __init__(
        self,
        in_channels: int,
        norm: bool = True,
        norm_eps: float = 1e-6,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.norm = nn.LayerNorm(in_channels, eps=norm_eps) if norm else nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor]:
        """Pool the last of the feature maps (B, C, H, W) to (B, C)."""
        return (self.norm(maps[-1].permute(0, 2, 3, 1)).mean(dim=(1, 2)),)
