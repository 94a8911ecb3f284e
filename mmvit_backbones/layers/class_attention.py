"""Layers that gather patch tokens into a class token.

Legend: B batch, N patch tokens, C channels, h heads, d channels per head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.folding import Scale
from mmvit_backbones.layers.mlp import MLP


class ClassAttention(nn.Module):
    """Attention from the class token alone (CaiT, arXiv 2103.17239, section 3).

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels per head.
        qkv_bias: Give the query, key and value projections a bias.
        attn_drop_rate: Dropout probability of attention weights.
        drop_rate: Dropout probability of the output.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        head_dims: int,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dims = num_heads * head_dims
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * inner_dims, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend from the first of the tokens (B, 1 + N, C) to all of them; returns (B, 1, C)."""
        q, k, v = rearrange(
            self.qkv(tokens), 'b n (three h d) -> three b h n d', three=3, h=self.num_heads
        )
        out = attention(q[:, :, :1], k, v, self.attn_drop)  # (B, h, 1, d)
        return self.drop(self.proj(rearrange(out, 'b h n d -> b n (h d)')))


class ClassAttentionBlock(nn.Module):
    """Class attention and MLP, both with LayerScale, on the class token.

    In the authors' code the patch tokens pass through the block too: its norms, its first scale
    and a doubling act on them (https://github.com/facebookresearch/xcit, `ClassAttentionBlock`).
    In the package vit-pytorch they stay as they are, and only the class token is normalized.

    Args:
        dims: Channels.
        num_heads: Heads.
        head_dims: Channels per head.
        mlp_dims: Width of the MLP.
        layer_scale: Initial factor of both branches.
        norm_eps: Epsilon of both norms.
        qkv_bias: Give the query, key and value projections a bias.
        update_patches: Pass the patch tokens through the block (the authors' code).
        tokens_norm: Normalize them before the MLP as well; only with `update_patches`.
        attn_drop_rate: Dropout probability of attention weights.
        drop_rate: Dropout probability of branch outputs and in the MLP.
    """

    gamma1: Scale
    gamma2: Scale

    def __init__(
        self,
        dims: int,
        num_heads: int,
        head_dims: int,
        mlp_dims: int,
        layer_scale: float,
        norm_eps: float,
        qkv_bias: bool,
        update_patches: bool,
        tokens_norm: bool,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.update_patches = update_patches
        self.tokens_norm = tokens_norm
        self.norm1 = nn.LayerNorm(dims, eps=norm_eps)
        self.attn = ClassAttention(dims, num_heads, head_dims, qkv_bias, attn_drop_rate, drop_rate)
        self.norm2 = nn.LayerNorm(dims, eps=norm_eps)
        self.mlp = MLP(dims, mlp_dims, drop_rate)
        self.gamma1 = nn.Parameter(torch.full((dims,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((dims,), layer_scale))

    def forward(self, cls_token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next class token (B, 1, C) and patch tokens (B, N, C)."""
        normed = self.norm1(cls_token)
        if not self.update_patches:
            cls_token = cls_token + self.gamma1 * self.attn(torch.cat((normed, patches), dim=1))
            return cls_token + self.gamma2 * self.mlp(self.norm2(cls_token)), patches
        normed_patches = self.norm1(patches)
        attended = self.attn(torch.cat((normed, normed_patches), dim=1))
        cls_token = cls_token + self.gamma1 * attended
        patches = patches + self.gamma1 * normed_patches
        if self.tokens_norm:
            patches = self.norm2(patches)
        # The authors add the MLP to the normalized class token and the patches to themselves.
        # Their weights depend on it.
        normed = self.norm2(cls_token)
        return normed + self.gamma2 * self.mlp(normed), 2 * patches

    def fold(self) -> None:
        """Move the LayerScale of the MLP into it; that of attention also scales the patches."""
        scale = self.mlp.fold_scale(self.gamma2)
        del self.gamma2
        self.gamma2 = scale
