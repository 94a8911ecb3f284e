"""Attention of all tokens to a subsampled feature map.

Legend: B batch, H x W = N tokens, C channels, h heads, d channels per head, r subsampling ratio,
M = ceil(H/r) ceil(W/r) subsampled tokens.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.folding import fold_norm
from mmvit_backbones.layers.tokens import Size, pad_to_multiple, to_map, to_tokens


class SubsampledAttention(nn.Module):
    """Global sub-sampled attention, GSA (Twins, arXiv 2104.13840, section 3.2).

    A strided convolution makes one key and one value of each patch of r x r tokens. Patches that
    reach over the bottom or right border are zero-padded, so that no token is left out.

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels per head.
        sr_ratio: Side of a patch, r; 1 subsamples nothing.
        qkv_bias: Give the query, key and value projections a bias.
        fused_reduction: Subsample and project to keys and values in one convolution (variant
            `'vit-pytorch'`) instead of a convolution, a norm and a linear layer.
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
        self.fused_reduction = fused_reduction
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
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend from all tokens (B, N, C) of a grid of `size` (H, W) to the subsampled grid."""
        q = rearrange(self.q(x), 'b n (h d) -> b h n d', h=self.num_heads)
        k, v = rearrange(
            self._keys_and_values(x, size),
            'b m (two h d) -> two b h m d',
            two=2,
            h=self.num_heads,
        )
        out = attention(q, k, v, self.attn_drop)  # (B, h, N, d)
        return self.drop(self.proj(rearrange(out, 'b h n d -> b n (h d)')))

    def _keys_and_values(self, x: Tensor, size: Size) -> Tensor:
        """Return the keys and values (B, M, 2hd) of tokens (B, N, C)."""
        if self.fused_reduction:
            return to_tokens(self.kv(pad_to_multiple(to_map(x, size), self.sr_ratio)))
        if self.sr is not None and self.norm is not None:
            x = self.norm(to_tokens(self.sr(pad_to_multiple(to_map(x, size), self.sr_ratio))))
        return self.kv(x)

    def fold_norm(self, norm: nn.Module) -> None:
        """Move the affine part of the norm before this layer into it.

        Only without subsampling: the grid is padded with zeros, which a shift would not reach.
        """
        if self.sr is None and not self.fused_reduction:
            fold_norm(norm, self.q, self.kv)
