"""Attention between channels instead of tokens, linear in the number of tokens.

Legend: B batch, N tokens, C channels, h heads, d channels per head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.folding import Scale, fold_norm, fold_scale
from mmvit_backbones.layers.precision import at_least_float32

MIN_LENGTH = 1e-12  # shorter lengths are replaced by it, as in `F.normalize`


def channel_attention_weights(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """Softmax over the key channels of temperature * cosine(query channel, key channel).

    Lengths and softmax are computed in fp32 at least, also under autocast: the length of a channel
    is a sum over all tokens.

    Args:
        q: Queries (..., d, N).
        k: Keys (..., d, N).
        temperature: Factor of each head (..., 1, 1).

    Returns:
        Weights (..., d, d), each row summing to 1.
    """
    q_inverse, k_inverse = _inverse_lengths(q), _inverse_lengths(k)
    if q.dtype == torch.float16:  # sums over many tokens would exceed its range
        q, q_inverse = (q * q_inverse).to(q.dtype), torch.ones_like(q_inverse)
    products = at_least_float32(q @ k.transpose(-2, -1))
    factors = k_inverse.transpose(-2, -1) * at_least_float32(temperature)
    return (products * q_inverse * factors).softmax(dim=-1)


def _inverse_lengths(x: Tensor) -> Tensor:
    """Return one over the length of each channel (..., d, N) over all tokens (..., d, 1)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return lengths.clamp_min(MIN_LENGTH).reciprocal()


class CrossCovarianceAttention(nn.Module):
    """Cross-covariance attention, XCA (XCiT, arXiv 2106.09681, section 3.2).

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels per head.
        qkv_bias: Give the query, key and value projections a bias.
        initial_temperature: Factor of the cosines before training.
        attn_drop_rate: Dropout probability of attention weights.
        drop_rate: Dropout probability of the output.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        head_dims: int,
        qkv_bias: bool = True,
        initial_temperature: float = 1.0,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dims = num_heads * head_dims
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), initial_temperature))
        self.qkv = nn.Linear(dims, 3 * inner_dims, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of tokens (B, N, C) by how they vary together over an image."""
        # Inductor computes a gradient three times if it is split after the transposition. Saved
        # tensors of four dimensions it copies to channels_last if a convolution follows.
        q, k, v = (
            rearrange(part, 'b n (h d) -> b h d n', h=self.num_heads).contiguous().flatten(0, 1)
            for part in self.qkv(x).chunk(3, dim=-1)
        )  # (Bh, d, N) each
        temperatures = self.temperature.repeat(x.shape[0], 1, 1)
        weights = channel_attention_weights(q, k, temperatures).unflatten(0, (-1, self.num_heads))
        weights = self.attn_drop(weights).flatten(0, 1)  # (Bh, d, d)
        out = weights.to(v.dtype) @ v  # (Bh, d, N)
        return self.drop(self.proj(rearrange(out, '(b h) d n -> b n (h d)', h=self.num_heads)))

    def fold_norm(self, norm: nn.Module) -> None:
        """Move the affine part of the norm before this layer into it."""
        fold_norm(norm, self.qkv)

    def fold_scale(self, scale: Scale) -> Scale:
        """Move the LayerScale after this layer into it; returns the scale that is left."""
        return fold_scale(self.proj, scale)
