"""XCiT's attention without queries, keys and values (arXiv 2106.09681, section 3.2).

With X the tokens (N, C), S = X^T X, m = X^T 1, and W, b the weights and biases that make queries
and keys,

    P       = W S + b m^T,   p = W m + N b
    K       = P W^T + p b^T, the products of all queries and keys over all tokens
    output  = X (W_proj A W_v)^T + (W_proj A b_v + b_proj)^T

where the attention weights A come from K's products of queries with keys, divided by the lengths on
its diagonal. All this is done within each head. So X is only multiplied by itself and by one (C, C)
matrix an image: 2NC^2 multiply-adds instead of 4NC^2 + 2NCd, and X is all that backward needs of
size N. It costs some products of (C, C) matrices, which pay from about N = 1.6C on, or 1.2C with a
backward pass.

K is quadratic in W and in X. With H the gradient of K plus its transpose, the gradients are H P of
W, H p of b and X W^T H W + 1 b^T H W of X.

Legend: B images, N tokens an image, C channels, h heads, d channels a head, D = hd. Images stand
inside the channels, in (h, d, B, ...), so that the products of all images are one, sums over images
are part of them, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmvit_backbones.layers.lean import is_traced
from mmvit_backbones.layers.precision import at_least_float32, compute_dtype, without_autocast

# Narrower blocks make slower products, and more of them save little.
_MAX_BLOCKS = 3
_MIN_BLOCK_CHANNELS = 64
_MIN_SQUARED_LENGTH = 1e-24  # 1e-12 squared, below which F.normalize stops dividing as well


def gram_attention(
    x: Tensor,
    norm: nn.LayerNorm,
    qkv: nn.Linear,
    temperature: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: bool = False,
) -> Tensor:
    """Return the attention between the channels of `norm(x)`, keeping of its size only `x`.

    It is not differentiable twice.

    Args:
        x: Tokens (B, N, C).
        norm: Norm of C channels.
        qkv: Linear layer to queries, keys and values (3D).
        temperature: Factor of each head's covariance (h, 1, 1).
        weight: Weight (C, D) of the linear layer behind the attention.
        bias: Its bias (C).
        residual: Add `x` to the result.
    """
    return _GramAttention.apply(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        *_by_head(qkv, len(temperature)),
        at_least_float32(temperature),
        at_least_float32(weight),
        at_least_float32(bias),
        compute_dtype(x),
        residual,
    )


def plain_gram_attention(
    tokens: Tensor,
    qkv: nn.Linear,
    temperature: Tensor,
    weight: Tensor,
    bias: Tensor,
    drop: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the attention between channels by operations that autograd or a compiler records.

    Args:
        tokens: Normed tokens (B, N, C).
        qkv: Linear layer to queries, keys and values (3D).
        temperature: Factor of each head's covariance (h, 1, 1).
        weight: Weight (C, D) of the linear layer behind the attention.
        bias: Its bias (C).
        drop: Dropout of attention weights.
    """
    with without_autocast(tokens.device):
        qk_weight, v_weight, qk_bias, v_bias = _by_head(qkv, len(temperature))
        attended = _attend(tokens, qk_weight, qk_bias, at_least_float32(temperature))
        values, shift = _values(drop(attended.weights), v_weight, v_bias)
        mixing, offset = _project(values, shift, at_least_float32(weight), at_least_float32(bias))
    return torch.baddbmm(offset[:, None].to(tokens.dtype), tokens, mixing.transpose(1, 2))


def _by_head(qkv: nn.Linear, num_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights (h, 2d, C), (h, d, C) and biases (h, 2d, 1), (h, d, 1) of qk and v."""
    weight = at_least_float32(qkv.weight)
    bias = weight.new_zeros(len(weight)) if qkv.bias is None else at_least_float32(qkv.bias)
    weights = weight.unflatten(0, (3, num_heads, -1))
    biases = bias.unflatten(0, (3, num_heads, -1))[..., None]
    qk_weight, qk_bias = (t[:2].transpose(0, 1).flatten(1, 2) for t in (weights, biases))
    return qk_weight, weights[2], qk_bias, biases[2]


class _Attended(NamedTuple):
    """Attention weights and what they were made of.

    Attributes:
        weights: A (h, d, B, d), queries first; sums over the last dimension are 1.
        cosines: Products of queries and keys, both brought to unit length (h, d, B, d).
        squared_lengths: Those of queries and keys over all tokens (h, B, 2d).
        projected: P (h, 2dB, C).
        projected_sums: p (h, 2dB, 1).
    """

    weights: Tensor
    cosines: Tensor
    squared_lengths: Tensor
    projected: Tensor
    projected_sums: Tensor


def _attend(tokens: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor) -> _Attended:
    """Compute the attention weights in fp32 at least.

    Args:
        tokens: Normed tokens (B, N, C).
        weight: W (h, 2d, C).
        bias: b (h, 2d, 1).
        temperature: Factors (h, 1, 1).
    """
    tokens = at_least_float32(tokens)
    batch_size, num_tokens, dims = tokens.shape
    num_heads, twice_head_dims, _ = weight.shape
    num_rows = twice_head_dims * batch_size
    gram = _gram_matrix(tokens).transpose(0, 1).reshape(dims, batch_size * dims)  # (C, BC)
    sums = tokens.sum(dim=1)  # (B, C)
    all_weights, all_biases = weight.flatten(0, 1), bias.flatten(0, 1)  # (2D, C), (2D, 1)
    projected = torch.addmm(all_biases * sums.flatten(), all_weights, gram)  # (2D, BC)
    projected = projected.view(num_heads, num_rows, dims)
    projected_sums = torch.addmm(num_tokens * all_biases, all_weights, sums.t())  # (2D, B)
    projected_sums = projected_sums.view(num_heads, num_rows, 1)
    products = torch.baddbmm(
        projected_sums * bias.transpose(1, 2), projected, weight.transpose(1, 2)
    )  # (h, 2dB, 2d)
    products = products.view(num_heads, twice_head_dims, batch_size, twice_head_dims)
    squared_lengths = products.diagonal(dim1=1, dim2=3)
    q_inverse, k_inverse = _inverse_lengths(squared_lengths)
    head_dims = twice_head_dims // 2
    cosines = products[:, :head_dims, :, head_dims:] * q_inverse * k_inverse
    weights = (cosines * temperature[..., None]).softmax(dim=-1)
    return _Attended(weights, cosines, squared_lengths, projected, projected_sums)


def _gram_matrix(tokens: Tensor) -> Tensor:
    """Return X^T X (B, C, C) of tokens (B, N, C).

    On a CPU, blocks of channels below the diagonal are mirrored instead of computed.
    """
    batch_size, _, dims = tokens.shape
    if is_traced() or torch.is_grad_enabled() or tokens.device.type != 'cpu':
        return tokens.transpose(1, 2) @ tokens
    gram = tokens.new_empty(batch_size, dims, dims)
    width = -(-dims // max(1, min(_MAX_BLOCKS, dims // _MIN_BLOCK_CHANNELS)))
    for start in range(0, dims, width):
        block, rest = slice(start, start + width), slice(start, None)
        torch.bmm(tokens[..., block].transpose(1, 2), tokens[..., rest], out=gram[:, block, rest])
        gram[:, block, :start] = gram[:, :start, block].transpose(1, 2)
    return gram


def _inverse_lengths(squared_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return one over the lengths of queries (h, d, B, 1) and of keys (h, 1, B, d)."""
    q_inverse, k_inverse = squared_lengths.clamp_min(_MIN_SQUARED_LENGTH).rsqrt().chunk(2, dim=-1)
    return q_inverse.transpose(1, 2)[..., None], k_inverse[:, None]


def _values(weights: Tensor, v_weight: Tensor, v_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return A W_v (D, BC) and A b_v (D, B)."""
    num_heads, head_dims, batch_size, _ = weights.shape
    rows = weights.flatten(1, 2)  # (h, dB, d)
    inner_dims, dims = num_heads * head_dims, v_weight.shape[2]
    values = (rows @ v_weight).view(inner_dims, batch_size * dims)
    return values, (rows @ v_bias).view(inner_dims, batch_size)


def _project(values: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return W_proj A W_v (B, C, C) and W_proj A b_v + b_proj (B, C)."""
    mixing = (weight @ values).view(len(weight), shift.shape[1], len(weight))
    return mixing.transpose(0, 1), torch.addmm(bias, shift.t(), weight.t())


class _GramAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        qk_weight: Tensor,
        v_weight: Tensor,
        qk_bias: Tensor,
        v_bias: Tensor,
        temperature: Tensor,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        residual: bool,
    ) -> Tensor:
        with without_autocast(x.device):
            tokens = F.layer_norm(x, x.shape[2:], norm_weight, norm_bias, eps)
            attended = _attend(tokens, qk_weight, qk_bias, temperature)
            values = _values(attended.weights, v_weight, v_bias)
            mixing, offset = _project(*values, weight, bias)
            tokens, mixing, offset = tokens.to(dtype), mixing.to(dtype), offset[:, None].to(dtype)
            if residual and x.dtype == dtype:
                out = x + offset
                torch.baddbmm(out, tokens, mixing.transpose(1, 2), out=out)
            else:
                out = torch.baddbmm(offset, tokens, mixing.transpose(1, 2))
                if residual:
                    out = x + out
        ctx.save_for_backward(
            x,
            norm_weight,
            norm_bias,
            qk_weight,
            v_weight,
            qk_bias,
            v_bias,
            temperature,
            weight,
            mixing,
            *attended,
        )
        ctx.eps, ctx.dtype, ctx.residual = eps, dtype, residual
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, qk_weight, v_weight, qk_bias, v_bias, *rest = ctx.saved_tensors
        temperature, weight, mixing, *parts = rest
        attended = _Attended(*parts)
        with without_autocast(x.device):
            tokens, mean, rstd = torch.native_layer_norm(
                x, x.shape[2:], norm_weight, norm_bias, ctx.eps
            )
            branch_grad = grad.to(ctx.dtype)
            grad_mixing = branch_grad.transpose(1, 2) @ tokens.to(ctx.dtype)  # (B, C, C)
            grad_offset = branch_grad.sum(1, dtype=weight.dtype)  # (B, C)
            grad_weights, grad_v_weight, grad_v_bias, grad_weight = _mix_backward(
                at_least_float32(grad_mixing), grad_offset, attended, v_weight, v_bias, weight
            )
            hessian, grad_temperature = _weights_backward(grad_weights, attended, temperature)
            grad_gram, grad_sums = _gram_backward(hessian, qk_weight, qk_bias, len(x))
            transposed = hessian.transpose(1, 2)  # equal but that images stand inside
            grad_tokens = torch.baddbmm(grad_sums[:, None], at_least_float32(tokens), grad_gram)
            if ctx.dtype == grad_tokens.dtype:
                torch.baddbmm(grad_tokens, branch_grad, mixing, out=grad_tokens)
            else:
                grad_tokens += branch_grad @ mixing
            grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
                grad_tokens.to(x.dtype),
                x,
                x.shape[2:],
                mean,
                rstd,
                norm_weight,
                norm_bias,
                [True, norm_weight is not None, norm_bias is not None],
            )
            if ctx.residual:
                grad_x += grad
            return (
                grad_x,
                grad_norm_weight,
                grad_norm_bias,
                None,
                transposed @ attended.projected,
                grad_v_weight,
                transposed @ attended.projected_sums,
                grad_v_bias,
                grad_temperature,
                grad_weight,
                grad_offset.sum(0),
                None,
                None,
            )


def _mix_backward(
    grad_mixing: Tensor,
    grad_offset: Tensor,
    attended: _Attended,
    v_weight: Tensor,
    v_bias: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the attention weights, v's weight and bias, and W_proj."""
    num_heads, head_dims, dims = v_weight.shape
    batch_size = len(grad_offset)
    num_rows = head_dims * batch_size
    values, shift = _values(attended.weights, v_weight, v_bias)
    grad_mixing = grad_mixing.transpose(0, 1).reshape(dims, batch_size * dims)  # (C, BC)
    grad_weight = torch.addmm(grad_mixing @ values.t(), grad_offset.t(), shift.t())
    grad_values = (weight.t() @ grad_mixing).view(num_heads, num_rows, dims)
    grad_shift = (weight.t() @ grad_offset.t()).view(num_heads, num_rows, 1)
    grad_weights = torch.baddbmm(
        grad_shift * v_bias.transpose(1, 2), grad_values, v_weight.transpose(1, 2)
    )
    columns = attended.weights.flatten(1, 2).transpose(1, 2)  # (h, d, dB)
    return (
        grad_weights.view(attended.weights.shape),
        columns @ grad_values,
        columns @ grad_shift,
        grad_weight,
    )


def _weights_backward(
    grad_weights: Tensor, attended: _Attended, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return H (h, 2dB, 2d) and the gradient of the temperature."""
    weights, cosines, squared_lengths, *_ = attended
    grad_logits = grad_weights * weights
    grad_logits -= grad_logits.sum(-1, keepdim=True) * weights
    grad_temperature = (grad_logits * cosines).sum((1, 2, 3)).view(temperature.shape)
    grad_cosines = grad_logits * temperature[..., None]
    q_inverse, k_inverse = _inverse_lengths(squared_lengths)
    num_heads, head_dims, batch_size, _ = weights.shape
    hessian = weights.new_zeros(num_heads, 2 * head_dims, batch_size, 2 * head_dims)
    grad_products = hessian[:, :head_dims, :, head_dims:]
    torch.mul(grad_cosines * q_inverse, k_inverse, out=grad_products)
    hessian[:, head_dims:, :, :head_dims] = grad_products.transpose(1, 3)
    # A length takes part in all products with it. Its own square counts twice in H.
    pulls = grad_cosines * cosines
    pulls = torch.cat((pulls.sum(3).transpose(1, 2), pulls.sum(1)), dim=-1)  # (h, B, 2d)
    pulls = pulls / squared_lengths
    pulls = pulls.masked_fill(squared_lengths < _MIN_SQUARED_LENGTH, 0)
    hessian.diagonal(dim1=1, dim2=3).copy_(-pulls)
    return hessian.flatten(1, 2), grad_temperature


def _gram_backward(
    hessian: Tensor, weight: Tensor, bias: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return W^T H W (B, C, C) and b^T H W (B, C)."""
    all_weights = weight.flatten(0, 1)  # (2D, C)
    twice_inner_dims, dims = all_weights.shape
    pulled = (hessian @ weight).view(twice_inner_dims, batch_size * dims)
    pulled_bias = (hessian @ bias).view(twice_inner_dims, batch_size)
    grad_gram = (all_weights.t() @ pulled).view(dims, batch_size, dims)
    return grad_gram.transpose(0, 1), pulled_bias.t() @ all_weights
