"""Attention between channels instead of tokens, linear in the number of tokens.

Two forms of the same sums. The direct form makes queries, keys and values (N, C) and multiplies
them. The Gram form never makes them. With X the tokens (N, C), S = X^T X and m = X^T 1,

    q^T k   = (W_q S + b_q m^T) W_k^T + (W_q m + N b_q) b_k^T
    |q|^2   = the diagonal of the same with W_k, b_k replaced by W_q, b_q
    output  = X (W_proj A W_v)^T + (W_proj A b_v + b_proj),  A the attention weights, head by head

so that X is only multiplied by itself and by one (C, C) matrix an image: 2NC^2 multiply-adds
instead of 4NC^2 + 2NCd, and X is all that backward needs of size N. It costs some products of
(C, C) matrices, which pay from about N = 1.5C on.

Legend: B batch, H x W = N tokens, C channels, h heads, d channels a head, D = hd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.layer_scale import fold_scale
from mmvit_backbones.layers.lean import gram_matrix
from mmvit_backbones.layers.padding import is_dynamic
from mmvit_backbones.layers.precision import at_least_float32, without_autocast

_MIN_SQUARED_LENGTH = 1e-24  # 1e-12 squared, below which F.normalize stops dividing as well


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
    q_unit = F.normalize(at_least_float32(q), dim=-1).to(q.dtype)
    k_unit = F.normalize(at_least_float32(k), dim=-1).to(k.dtype)
    covariance = at_least_float32(q_unit @ k_unit.transpose(-2, -1))
    return (covariance * at_least_float32(temperature)).softmax(dim=-1)


def gram_attention_weights(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor
) -> Tensor:
    """Compute `channel_attention_weights` without queries and keys, in fp32 at least.

    Args:
        tokens: Tokens (B, N, C) that queries and keys are made of.
        weight: Rows of the query projection, then of the key projection (2D, C).
        bias: Their biases (2D).
        temperature: Factor of each head (h, 1, 1).

    Returns:
        Weights (B, h, d, d).
    """
    num_heads, num_tokens = temperature.shape[0], tokens.shape[1]
    tokens, weight = at_least_float32(tokens), at_least_float32(weight)
    projected = weight @ gram_matrix(tokens)  # (B, 2D, C)
    if bias is not None:
        bias = at_least_float32(bias)
        sums = tokens.sum(dim=1)  # (B, C)
        projected = projected + bias[:, None] * sums[:, None]
        projected_sums = sums @ weight.t() + num_tokens * bias  # (B, 2D)
        squared_lengths = (projected * weight).sum(dim=-1) + projected_sums * bias
    else:
        squared_lengths = (projected * weight).sum(dim=-1)
    q_projected = projected.chunk(2, dim=1)[0]
    covariance = rearrange(q_projected, 'b (h d) c -> b h d c', h=num_heads) @ rearrange(
        weight.chunk(2)[1], '(h d) c -> h c d', h=num_heads
    )  # (B, h, d, d)
    if bias is not None:
        q_sums = rearrange(projected_sums.chunk(2, dim=1)[0], 'b (h d) -> b h d 1', h=num_heads)
        covariance = covariance + q_sums * rearrange(
            bias.chunk(2)[1], '(h d) -> h 1 d', h=num_heads
        )
    inverse = squared_lengths.clamp_min(_MIN_SQUARED_LENGTH).rsqrt()
    q_inverse, k_inverse = rearrange(inverse, 'b (two h d) -> two b h d', two=2, h=num_heads)
    logits = covariance * q_inverse[..., :, None] * k_inverse[..., None, :]
    return (logits * at_least_float32(temperature)).softmax(dim=-1)


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

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Mix the channels of tokens by how they vary together over all tokens of an image.

        Args:
            x: Tokens (B, ..., C).
            scale: LayerScale, a factor of each channel of the output (C).
        """
        tokens = x.flatten(1, -2)  # (B, N, C)
        weight, bias = fold_scale(self.proj, scale)
        form = self._gram_form if self._gram_form_is_cheaper(tokens) else self._direct_form
        return self.drop(form(tokens, weight, bias)).view(x.shape)

    def _gram_form_is_cheaper(self, tokens: Tensor) -> bool:
        """Whether the Gram form takes fewer multiply-adds, or has to serve any number of tokens."""
        num_tokens, dims = tokens.shape[1:]
        if is_dynamic(num_tokens):
            return True
        inner_dims = self.proj.in_features
        head_dims = inner_dims // self.num_heads
        direct_per_token = 4 * inner_dims * dims + 2 * inner_dims * head_dims
        gram_per_token = 2 * dims * dims
        gram_per_image = 3 * inner_dims * dims * dims + 2 * inner_dims * head_dims * dims
        return num_tokens * (direct_per_token - gram_per_token) > gram_per_image

    def _direct_form(self, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(tokens), 'b n (three h d) -> three b h d n', three=3, h=self.num_heads
        )
        weights = self.attn_drop(channel_attention_weights(q, k, self.temperature))
        out = weights.to(v.dtype) @ v  # (B, h, d, N)
        return F.linear(rearrange(out, 'b h d n -> b n (h d)'), weight, bias)

    def _gram_form(self, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inner_dims = self.proj.in_features
        sizes = (2 * inner_dims, inner_dims)
        qk_weight, v_weight = self.qkv.weight.split(sizes)
        qk_bias, v_bias = (None, None) if self.qkv.bias is None else self.qkv.bias.split(sizes)
        with without_autocast(tokens.device):
            weights = self.attn_drop(
                gram_attention_weights(tokens, qk_weight, qk_bias, self.temperature)
            )  # (B, h, d, d)
            by_head = rearrange(at_least_float32(v_weight), '(h d) c -> h d c', h=self.num_heads)
            weight = at_least_float32(weight)
            mixing = weight @ (weights @ by_head).flatten(1, 2)  # (B, C, C)
            offset = at_least_float32(bias)[None]
            if v_bias is not None:
                v_bias = rearrange(at_least_float32(v_bias), '(h d) -> h d 1', h=self.num_heads)
                offset = offset + (weights @ v_bias).flatten(1) @ weight.t()
        return torch.baddbmm(offset[:, None].to(tokens.dtype), tokens, mixing.transpose(1, 2))
