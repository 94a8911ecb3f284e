"""Attention between channels instead of tokens, linear in the number of tokens.

The direct form makes queries, keys and values (N, C) and multiplies them; `gram_attention` computes
the same sums without them.

Legend: B batch, H x W = N tokens, C channels, h heads, d channels a head, D = hd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.gram_attention import gram_attention, plain_gram_attention
from mmvit_backbones.layers.layer_scale import fold_scale
from mmvit_backbones.layers.lean import add_residual, is_traced
from mmvit_backbones.layers.padding import is_dynamic
from mmvit_backbones.layers.precision import at_least_float32, compute_dtype

# Time of a multiply-add in fp32 over one in bf16 on a CPU that has instructions for both, from the
# numbers of tokens at which the two forms were measured to take as long.
_FULL_PRECISION_COST = 1.7


def channel_attention_weights(q: Tensor, k: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of the cross-covariance of queries and keys, each channel of unit length.

    Norms and softmax are computed in fp32 at least, whatever autocast says: a channel's length is
    a sum over all tokens.

    Args:
        q: Queries (B, h, d, N).
        k: Keys (B, h, d, N).
        temperature: Factor of each head (h, 1, 1).

    Returns:
        Weights (B, h, d, d), each row summing to 1.
    """
    q_inverse, k_inverse = _inverse_lengths(q), _inverse_lengths(k)
    if q.dtype == torch.float16:  # sums over many tokens would exceed its range
        q, q_inverse = (q * q_inverse).to(q.dtype), torch.ones_like(q_inverse)
    covariance = at_least_float32(q @ k.transpose(-2, -1))
    factors = k_inverse.transpose(-2, -1) * at_least_float32(temperature)
    return (covariance * q_inverse * factors).softmax(dim=-1)


def _inverse_lengths(x: Tensor) -> Tensor:
    """Return one over the length of each channel (B, h, d, N) over all tokens (B, h, d, 1)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).clamp_min(1e-12).reciprocal()
    )


class CrossCovarianceAttention(nn.Module):
    """Cross-covariance attention, XCA (XCiT, arXiv 2106.09681, section 3.2).

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels a head.
        qkv_bias: Give the query, key and value projections a bias.
        initial_temperature: Factor of the covariance before training.
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

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        scale: Tensor | None = None,
        residual: bool = False,
    ) -> Tensor:
        """Mix the channels of tokens by how they vary together over all tokens of an image.

        Args:
            x: Tokens (B, N, C).
            norm: Norm before the attention.
            scale: LayerScale, a factor of each channel of the output (C).
            residual: Add `x` to the result.
        """
        weight, bias = fold_scale(self.proj, scale)
        use_gram = self._gram_form_is_cheaper(x)
        drops = self.training and max(self.attn_drop.p, self.drop.p) > 0
        if use_gram and not drops and not is_traced():
            return gram_attention(x, norm, self.qkv, self.temperature, weight, bias, residual)
        normed = norm(x)
        if use_gram:
            branch = plain_gram_attention(
                normed, self.qkv, self.temperature, weight, bias, self.attn_drop
            )
        else:
            branch = self._direct_form(normed, weight, bias)
        branch = self.drop(branch)
        return add_residual(x, branch) if residual else branch

    def _gram_form_is_cheaper(self, tokens: Tensor) -> bool:
        """Whether the Gram form takes less time, or has to serve any number of tokens."""
        num_tokens, dims = tokens.shape[1:]
        is_reduced = compute_dtype(tokens).itemsize < 4
        if is_reduced and tokens.device.type != 'cpu':
            return False  # full precision, in which S is made, takes many times as long there
        if is_dynamic(num_tokens):
            return True
        inner_dims = self.proj.in_features
        head_dims = inner_dims // self.num_heads
        full = _FULL_PRECISION_COST if is_reduced else 1.0
        direct_per_token = 4 * inner_dims * dims + 2 * inner_dims * head_dims
        gram_per_token = (1 + full) * dims**2
        gram_per_image = full * inner_dims * dims * (3 * dims + 5 * head_dims)
        if torch.is_grad_enabled():  # backward
            direct_per_token += 2 * direct_per_token
            gram_per_token += (2 + full) * dims**2
            gram_per_image += full * inner_dims * dims * (4 * dims + 11 * head_dims)
        return num_tokens * (direct_per_token - gram_per_token) > gram_per_image

    def _direct_form(self, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # One copy here saves one before each product.
        q, k, v = rearrange(
            self.qkv(tokens), 'b n (three h d) -> three b h d n', three=3, h=self.num_heads
        ).contiguous()
        weights = self.attn_drop(channel_attention_weights(q, k, self.temperature))
        out = weights.to(v.dtype) @ v  # (B, h, d, N)
        return F.linear(rearrange(out, 'b h d n -> b n (h d)'), weight, bias)
