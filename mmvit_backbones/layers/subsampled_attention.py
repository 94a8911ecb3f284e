"""Attention of all tokens to a subsampled map.

Legend: B batch, H x W tokens, C channels, h heads, d channels a head, r subsampling ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.layout import channels_first, channels_last
from mmvit_backbones.layers.padding import pad_to_multiple


class SubsampledAttention(nn.Module):
    """Global sub-sampled attention, GSA (Twins, arXiv 2104.13840, section 3.2).

    Keys and values come from r x r patches of the map, one token a patch. Patches that reach over
    the bottom or right border are filled up with zeros, which add nothing to their sum, so that no
    token is left out.

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels a head.
        sr_ratio: Side of a patch, r; 1 subsamples nothing.
        qkv_bias: Give the query, key and value projections a bias.
        fused_reduction: Subsample and project to keys and values in one convolution without a norm
            between (vit-pytorch's structure) instead of convolution, norm and linear layer.
        attn_drop_rate: Dropout probability of attention weights.
        drop_rate: Dropout probability of the output.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        head_dims: int,
        sr_ratio: int,
        qkv_bias: bool = True,
        fused_reduction: bool = False,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dims = num_heads * head_dims
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(dims, inner_dims, bias=qkv_bias)
        self.kv: nn.Module
        self.sr: nn.Module | None = None
        self.norm: nn.Module | None = None
        if fused_reduction:
            self.kv = nn.Conv2d(dims, 2 * inner_dims, sr_ratio, sr_ratio, bias=qkv_bias)
        else:
            self.kv = nn.Linear(dims, 2 * inner_dims, bias=qkv_bias)
            if sr_ratio > 1:
                self.sr = nn.Conv2d(dims, dims, sr_ratio, sr_ratio)
                self.norm = nn.LayerNorm(dims)
        self.fused_reduction = fused_reduction
        self.proj = nn.Linear(inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Norm a map (B, H, W, C) and attend from every token to the map's subsampled form."""
        shape = x.shape
        tokens = norm(x.flatten(1, 2))  # (B, HW, C)
        q = rearrange(self.q(tokens), 'b n (h d) -> b h n d', h=self.num_heads)
        k, v = rearrange(
            self._keys_and_values(tokens, shape),
            'b n (two h d) -> two b h n d',
            two=2,
            h=self.num_heads,
        )
        drop = self.attn_drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)  # (B, h, HW, d)
        return self.drop(self.proj(rearrange(out, 'b h n d -> b n (h d)'))).view(shape)

    def _keys_and_values(self, tokens: Tensor, shape: Sequence[int]) -> Tensor:
        """Subsample the tokens (B, HW, C) of a map; returns (B, ceil(H/r) ceil(W/r), 2hd)."""
        conv = self.kv if self.fused_reduction else self.sr
        if conv is None:
            return self.kv(tokens)
        padded = pad_to_multiple(channels_first(tokens.view(shape)), self.sr_ratio)
        reduced = channels_last(conv(padded)).flatten(1, 2)
        return reduced if self.norm is None else self.kv(self.norm(reduced))
