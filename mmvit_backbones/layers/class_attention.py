"""Layers that gather patch tokens into a class token.

Legend: B batch, N patch tokens, C channels, h heads, d channels a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.mlp import MLP


class ClassAttention(nn.Module):
    """Attention from the class token alone (CaiT, arXiv 2103.17239, section 3).

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels a head.
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
        self.num_heads = num_heads
        self.inner_dims = num_heads * head_dims
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dims, 3 * self.inner_dims, bias=qkv_bias)
        self.proj = nn.Linear(self.inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, cls_token: Tensor, tokens: Tensor) -> Tensor:
        """Attend from a class token (B, 1, C) to tokens (B, N, C); returns (B, 1, C)."""
        sizes = (self.inner_dims, 2 * self.inner_dims)
        q_weight, kv_weight = self.qkv.weight.split(sizes)
        q_bias, kv_bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(sizes)
        q = rearrange(
            F.linear(cls_token, q_weight, q_bias), 'b n (h d) -> b h n d', h=self.num_heads
        )
        k, v = rearrange(
            F.linear(tokens, kv_weight, kv_bias),
            'b n (two h d) -> two b h n d',
            two=2,
            h=self.num_heads,
        )
        drop = self.attn_drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)  # (B, h, 1, d)
        return self.drop(self.proj(rearrange(out, 'b h n d -> b n (h d)')))


class ClassAttentionBlock(nn.Module):
    """Class attention and MLP, both with LayerScale, on the class token.

    In the authors' code the patch tokens pass through the block too: its norms, its first scale
    and a doubling act on them (https://github.com/facebookresearch/xcit, `ClassAttentionBlock`).
    In the package vit-pytorch they stay as they are, and only the class token is normed.

    Args:
        dims: Channels.
        num_heads: Heads.
        head_dims: Channels a head.
        mlp_dims: Width of the MLP.
        layer_scale: Initial factor of both branches.
        norm_eps: Epsilon of both norms.
        qkv_bias: Give the query, key and value projections a bias.
        update_patches: Pass the patch tokens through the block (the authors' code).
        tokens_norm: Norm them before the MLP as well; only with `update_patches`.
        attn_drop_rate: Dropout probability of attention weights.
        drop_rate: Dropout probability of branch outputs and in the MLP.
    """

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
        normed_cls = self.norm1(cls_token)
        if not self.update_patches:
            attended = self.attn(normed_cls, torch.cat((normed_cls, patches), dim=1))
            cls_token = cls_token + self.gamma1 * attended
            return cls_token + self.mlp(cls_token, self.norm2, self.gamma2), patches
        normed_patches = self.norm1(patches)
        attended = self.attn(normed_cls, torch.cat((normed_cls, normed_patches), dim=1))
        cls_token = cls_token + self.gamma1 * attended
        patches = patches + self.gamma1 * normed_patches
        if self.tokens_norm:
            patches = self.norm2(patches)
        # The authors add the MLP to the normed class token, and the patches to themselves; their
        # weights count on it.
        mlp = self.mlp(cls_token, self.norm2, self.gamma2)
        return self.norm2(cls_token) + mlp, 2 * patches
