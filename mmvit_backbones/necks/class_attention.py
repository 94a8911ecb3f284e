"""Pooling of XCiT for classification.

Legend: B batch, N = H x W tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvit_backbones.layers.class_attention import ClassAttentionBlock
from mmvit_backbones.layers.init import init_linear
from mmvit_backbones.layers.layer_scale import initial_layer_scale
from mmvit_backbones.layers.variant import PAPER, check_variant
from mmvit_backbones.registry import MODELS


@MODELS.register_module()
class ClassAttentionPooling(BaseModule):
    """A class token that attends to the last feature map (XCiT, arXiv 2106.09681, section 3.3).

    Args:
        in_channels: Channels of the feature map.
        num_heads: Attention heads.
        head_dims: Channels a head; `in_channels / num_heads` by default.
        mlp_dims: Width of the MLPs; 4 * `in_channels` by default.
        num_layers: Class-attention layers.
        layer_scale: Initial factor of residual branches; None for vit-pytorch's rule by layer.
        tokens_norm: Normalize the patch tokens before the MLPs too, as in all the paper's sizes but
            nano; without effect in vit-pytorch's structure.
        variant: `'paper'` for the authors' structure, `'vit-pytorch'` for that package's.
        drop_rate: Dropout probability of branch outputs and in the MLPs.
        attn_drop_rate: Dropout probability of attention weights.
        init_cfg: What MMEngine's `init_weights()` shall do to the initialised neck.
        arch: The architecture of the XCiT before it, as its own `arch`; it sets every argument
            above from `in_channels` to `variant`, of which none is given then.

    Raises:
        ValueError: If `variant` is not known, `num_layers` is below 1, `num_heads` does not
            divide `in_channels` and `head_dims` is not given, or neither or both of `arch` and
            `in_channels` with `num_heads` are given.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        num_heads: int | None = None,
        head_dims: int | None = None,
        mlp_dims: int | None = None,
        num_layers: int = 2,
        layer_scale: float | None = 1.0,
        tokens_norm: bool = True,
        variant: str = PAPER,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
        arch: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if arch is not None:
            if in_channels is not None or num_heads is not None:
                raise ValueError(
                    'arch sets in_channels and num_heads; give either it or them, got arch '
                    f'{arch!r}, in_channels {in_channels}, num_heads {num_heads}'
                )
            sizes = _class_attention(arch)
            in_channels, num_heads = sizes['in_channels'], sizes['num_heads']
            head_dims, mlp_dims = sizes['head_dims'], sizes['mlp_dims']
            num_layers, layer_scale = sizes['num_layers'], sizes['layer_scale']
            tokens_norm, variant = sizes['tokens_norm'], sizes['variant']
        if in_channels is None or num_heads is None:
            raise ValueError(
                'either arch or both in_channels and num_heads must be given, got in_channels '
                f'{in_channels}, num_heads {num_heads}'
            )
        check_variant(variant)
        if num_layers < 1:
            raise ValueError(f'num_layers must be at least 1, got {num_layers}')
        if head_dims is None and in_channels % num_heads:
            raise ValueError(
                f'num_heads must divide in_channels {in_channels} where head_dims is not given, '
                f'got {num_heads}'
            )
        is_paper = variant == PAPER
        norm_eps = 1e-6 if is_paper else 1e-5
        # The patches of the paper's structure are normed inside the layers.
        self.patch_norm = nn.Identity() if is_paper else nn.LayerNorm(in_channels, eps=norm_eps)
        self.cls_token = nn.Parameter(torch.empty(1, 1, in_channels))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(
                in_channels,
                num_heads,
                head_dims or in_channels // num_heads,
                mlp_dims or 4 * in_channels,
                initial_layer_scale(layer_scale, j + 1),
                norm_eps,
                qkv_bias=is_paper,
                update_patches=is_paper,
                tokens_norm=tokens_norm,
                attn_drop_rate=attn_drop_rate,
                drop_rate=drop_rate,
            )
            for j in range(num_layers)
        )
        self.norm = nn.LayerNorm(in_channels, eps=norm_eps)
        if is_paper:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            init_linear(self)
        else:
            nn.init.normal_(self.cls_token)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor]:
        """Pool the last of the feature maps (B, C, H, W) to (B, C)."""
        patches = self.patch_norm(maps[-1].flatten(2).transpose(1, 2))  # (B, N, C)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        for block in self.cls_attn_blocks:
            cls_token, patches = block(cls_token, patches)
        return (self.norm(cls_token[:, 0]),)


def _class_attention(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pooling takes from the table of architectures."""
    # Here, because that file imports the package of this one for its pyramid.
    from mmvit_backbones.backbones.base import resolve_arch
    from mmvit_backbones.backbones.xcit import ARCHS

    return resolve_arch(arch, ARCHS).class_attention
