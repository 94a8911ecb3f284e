"""Cross-covariance attention without queries, keys and values.

Serves the branch `scale * attn(norm(x))` of XCiT (arXiv 2106.09681, section 3.2). Let X (N, C) be
the normalized tokens of an image, G = X^T X their Gram matrix, s = X^T 1 their sums, and W, b the
weights and biases of queries and keys. Then

    P      = W G + b s^T,    p = W s + N b
    R      = P W^T + p b^T
    output = X (W_proj A W_v)^T + (W_proj A b_v + b_proj)^T

R holds the inner products, over all tokens, of each two channels of queries and keys. The attention
weights A of a head come from its block of R for queries with keys, divided by the lengths of both;
the squared lengths are the diagonal of R.

X is multiplied only by itself and by one (C, C) matrix per image. That takes 2NC^2 multiply-adds
instead of 4NC^2 + 2NCd. The products of (C, C) matrices that it takes besides pay from about N =
1.6C on, or N = 1.2C with a backward pass. `_GramAttention` saves the input as its only tensor of N
tokens; where dropout is active and in graphs, autograd decides.

Shapes: W, P (2D, C); b, p (2D); R (2d, 2d) of a head; A (D, D), a block for each head; W_v (D, C);
W_proj (C, D).

Legend: B batch, N tokens, C channels, h heads, d channels per head, D = hd. B stands after d, so
the rows (d, B) of all images enter one product, which in backward also sums the gradients of the
weights over the images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.kernels import modes, operators
from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.channel_weights import (
    Weighed,
    weigh,
    weigh_backward,
    why_other_layers,
)
from mmvit_backbones.kernels.expected import drops
from mmvit_backbones.kernels.modes import COMPILE, EXPORT, is_static, typical_size
from mmvit_backbones.layers.cross_covariance_attention import CrossCovarianceAttention
from mmvit_backbones.layers.folding import scaled_parameters
from mmvit_backbones.layers.precision import at_least_float32, without_autocast

# Relative cost of an fp32 and a bf16 multiply-add on a CPU with native bf16, fitted to the measured
# crossover of the two forms.
FULL_PRECISION_COST = 1.7
# A CPU computes the Gram matrix by blocks. Narrower blocks are slower, more of them save little.
MAX_BLOCKS = 3
MIN_BLOCK_CHANNELS = 64


def refusal(
    mode: str, x: Tensor, norm: nn.LayerNorm, layer: CrossCovarianceAttention
) -> str | None:
    """Return why the kernel does not serve a branch; None if it does.

    It compares multiply-adds: per token, and per image for the products of (C, C) matrices.
    """
    if reason := why_other_layers(layer):
        return reason
    num_tokens: int | None
    num_tokens, dims = x.shape[1:]
    dtype = compute_dtype(x)
    is_reduced = dtype.itemsize < 4
    if is_reduced and x.device.type != 'cpu':
        return 'the Gram matrix needs full precision, which is slow on this device'
    if (
        mode != EXPORT
        and not torch.is_grad_enabled()
        and dtype == torch.bfloat16
        and operators.runs_on_onednn(x.device, dtype)
    ):
        return 'without gradients in bf16 the direct form is as fast'
    if mode == EXPORT:
        if not is_static(x.shape[0]) and not modes.has_unguarded_sizes():
            return 'the graph has a dynamic batch, which the Gram form would put a guard on'
        num_tokens = typical_size(x.shape[1])  # the graph is written for sizes like the example's
    elif not is_static(x.shape[1]):
        return None  # one form has to serve any number of tokens
    if num_tokens is None:
        return 'the size of the example is not known'
    inner_dims = layer.proj.in_features
    head_dims = inner_dims // layer.num_heads
    full = FULL_PRECISION_COST if is_reduced else 1.0
    direct_per_token = 4 * inner_dims * dims + 2 * inner_dims * head_dims
    gram_per_token = (1 + full) * dims**2
    gram_per_image = full * inner_dims * dims * (3 * dims + 5 * head_dims)
    if torch.is_grad_enabled():  # and the backward pass
        direct_per_token += 2 * direct_per_token
        gram_per_token += (2 + full) * dims**2
        gram_per_image += full * inner_dims * dims * (4 * dims + 11 * head_dims)
    if num_tokens * (direct_per_token - gram_per_token) > gram_per_image:
        return None
    return f'{num_tokens} tokens are too few, the direct form is cheaper'


def run(
    mode: str,
    x: Tensor,
    norm: nn.LayerNorm,
    layer: CrossCovarianceAttention,
    scale: Tensor | None,
    residual: bool,
) -> Tensor:
    """Compute the branch `scale * layer(norm(x))` of tokens (B, N, C), plus `x` if `residual`."""
    proj = layer.proj
    weight, bias = (proj.weight, proj.bias) if scale is None else scaled_parameters(proj, scale)
    assert bias is not None
    if mode in (COMPILE, EXPORT) or drops(layer.attn_drop, layer.drop):
        out = _gram_by_autograd(norm(x), layer, weight, bias)
        return x + out if residual else out
    return _GramAttention.apply(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        *_by_head(layer),
        at_least_float32(layer.temperature),
        at_least_float32(weight),
        at_least_float32(bias),
        compute_dtype(x),
        residual,
    )


def _gram_by_autograd(
    tokens: Tensor, layer: CrossCovarianceAttention, weight: Tensor, bias: Tensor
) -> Tensor:
    """Compute the Gram form in operations that autograd and compilers record."""
    with without_autocast(tokens.device):
        qk_weight, v_weight, qk_bias, v_bias = _by_head(layer)
        wide = at_least_float32(tokens)
        temperature = at_least_float32(layer.temperature)
        gram = wide.transpose(1, 2) @ wide
        attended = attention_weights(wide, qk_weight, qk_bias, temperature, gram)
        values, mixed_bias = attend_values(
            layer.attn_drop(attended.weighed.weights), v_weight, v_bias
        )
        mixing, offset = output_matrix(
            values, mixed_bias, at_least_float32(weight), at_least_float32(bias)
        )
    offset = offset[:, None].to(tokens.dtype)
    return layer.drop(torch.baddbmm(offset, tokens, mixing.transpose(1, 2)))


def _by_head(layer: CrossCovarianceAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights (h, 2d, C), (h, d, C) and biases (h, 2d, 1), (h, d, 1) of qk and v."""
    weight = at_least_float32(layer.qkv.weight)
    if layer.qkv.bias is None:
        bias = weight.new_zeros(len(weight))
    else:
        bias = at_least_float32(layer.qkv.bias)
    weights = weight.unflatten(0, (3, layer.num_heads, -1))
    biases = bias.unflatten(0, (3, layer.num_heads, -1))[..., None]
    qk_weight, qk_bias = (t[:2].transpose(0, 1).flatten(1, 2) for t in (weights, biases))
    return qk_weight, weights[2], qk_bias, biases[2]


class Attended(NamedTuple):
    """Attention weights and what they were made of.

    Attributes:
        weighed: The weights, a block for each head.
        qk_gram: P (h, 2dB, C).
        qk_sums: p (h, 2dB, 1).
    """

    weighed: Weighed
    qk_gram: Tensor
    qk_sums: Tensor


def attention_weights(
    tokens: Tensor,
    qk_weight: Tensor,
    qk_bias: Tensor,
    temperature: Tensor,
    gram: Tensor,
    ops: Any = torch,
) -> Attended:
    """Compute the attention weights in fp32 at least.

    Args:
        tokens: Normalized tokens (B, N, C), in fp32 at least.
        qk_weight: W (h, 2d, C).
        qk_bias: b (h, 2d, 1).
        temperature: Factors (h, 1, 1).
        gram: G (B, C, C).
        ops: Whose `mm` and `addmm` to call: torch's, which autograd records, or `operators`'.
    """
    batch_size, num_tokens, dims = tokens.shape
    num_heads, twice_head_dims, _ = qk_weight.shape
    num_rows = twice_head_dims * batch_size
    gram = gram.transpose(0, 1).reshape(dims, batch_size * dims)  # (C, BC)
    sums = tokens.sum(dim=1)  # s (B, C)
    all_weights, all_biases = qk_weight.flatten(0, 1), qk_bias.flatten(0, 1)  # (2D, C), (2D, 1)
    qk_gram = ops.addmm(all_biases * sums.flatten(), all_weights, gram)  # (2D, BC)
    qk_gram = qk_gram.view(num_heads, num_rows, dims)
    qk_sums = torch.addmm(num_tokens * all_biases, all_weights, sums.t())  # (2D, B)
    qk_sums = qk_sums.view(num_heads, num_rows, 1)
    products = torch.baddbmm(
        qk_sums * qk_bias.transpose(1, 2), qk_gram, qk_weight.transpose(1, 2)
    )  # R of each head (h, 2dB, 2d)
    products = products.view(num_heads, twice_head_dims, batch_size, twice_head_dims)
    head_dims = twice_head_dims // 2
    weighed = weigh(
        products[:, :head_dims, :, head_dims:], products.diagonal(dim1=1, dim2=3), temperature
    )
    return Attended(weighed, qk_gram, qk_sums)


def _gram(tokens: Tensor) -> Tensor:
    """Return G (B, C, C) of tokens (B, N, C); blocks below the diagonal are mirrored.

    Blocks are written in place, which autograd does not record.
    """
    batch_size, _, dims = tokens.shape
    if tokens.device.type != 'cpu':
        return tokens.transpose(1, 2) @ tokens
    gram = tokens.new_empty(batch_size, dims, dims)
    width = -(-dims // max(1, min(MAX_BLOCKS, dims // MIN_BLOCK_CHANNELS)))
    for image, out in zip(tokens, gram, strict=True):
        channels = image.t()  # (C, N)
        if operators.multiplies_by_onednn(channels):
            channels = channels.contiguous()
        for start in range(0, dims, width):
            block, rest = slice(start, start + width), slice(start, None)
            out[block, rest] = operators.linear(channels[block], channels[rest])
            out[block, :start] = out[:start, block].t()
    return gram


def attend_values(weights: Tensor, v_weight: Tensor, v_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return A W_v (D, BC) and A b_v (D, B)."""
    num_heads, head_dims, batch_size, _ = weights.shape
    rows = weights.flatten(1, 2)  # (h, dB, d)
    inner_dims, dims = num_heads * head_dims, v_weight.shape[2]
    values = (rows @ v_weight).view(inner_dims, batch_size * dims)
    return values, (rows @ v_bias).view(inner_dims, batch_size)


def output_matrix(
    values: Tensor,
    mixed_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    ops: Any = torch,
) -> tuple[Tensor, Tensor]:
    """Return W_proj A W_v (B, C, C) and W_proj A b_v + b_proj (B, C).

    As in `attention_weights`, `ops` has the product to call.
    """
    dims = len(proj_weight)
    mixing = ops.mm(proj_weight, values).view(dims, mixed_bias.shape[1], dims)
    return mixing.transpose(0, 1), torch.addmm(proj_bias, mixed_bias.t(), proj_weight.t())


class _GramAttention(torch.autograd.Function):
    """The branch with a backward pass of its own, which saves the input and small matrices.

    R is quadratic in W and in X. Let dR be its gradient and S = dR + dR^T, `doubled` in the code.
    Then the gradients are S P of W, S p of b, and X W^T S W + 1 b^T S W of X.
    """

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
        proj_weight: Tensor,
        proj_bias: Tensor,
        dtype: torch.dtype,
        residual: bool,
    ) -> Tensor:
        with without_autocast(x.device):
            tokens = F.layer_norm(x, x.shape[2:], norm_weight, norm_bias, eps)
            wide = at_least_float32(tokens)
            gram = _gram(wide)
            attended = attention_weights(wide, qk_weight, qk_bias, temperature, gram, operators)
            values = attend_values(attended.weighed.weights, v_weight, v_bias)
            mixing, offset = output_matrix(*values, proj_weight, proj_bias, operators)
            tokens, mixing, offset = tokens.to(dtype), mixing.to(dtype), offset[:, None].to(dtype)
            if residual and x.dtype == dtype:
                out = operators.add_linear_(x + offset, tokens, mixing)
            else:
                out = torch.baddbmm(offset, tokens, mixing.transpose(1, 2))
                out = x + out if residual else out
        ctx.save_for_backward(
            x,
            norm_weight,
            norm_bias,
            qk_weight,
            v_weight,
            qk_bias,
            v_bias,
            temperature,
            proj_weight,
            mixing,
            *attended.weighed,
            attended.qk_gram,
            attended.qk_sums,
        )
        ctx.eps, ctx.dtype, ctx.residual = eps, dtype, residual
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, norm_weight, norm_bias, qk_weight, v_weight, qk_bias, v_bias, *rest = ctx.saved_tensors
        temperature, proj_weight, mixing, *weighed, qk_gram, qk_sums = rest
        weighed = Weighed(*weighed)
        with without_autocast(x.device):
            tokens, mean, rstd = operators.layer_norm(x, norm_weight, norm_bias, ctx.eps)
            branch_grad = grad.to(ctx.dtype)
            grad_mixing = operators.transposed_bmm(branch_grad, tokens.to(ctx.dtype))  # (B, C, C)
            grad_offset = branch_grad.sum(1, dtype=proj_weight.dtype)  # (B, C)
            grad_weights, grad_v_weight, grad_v_bias, grad_proj_weight = _mixing_backward(
                at_least_float32(grad_mixing),
                grad_offset,
                weighed.weights,
                v_weight,
                v_bias,
                proj_weight,
            )
            doubled, grad_temperature = _weights_backward(grad_weights, weighed, temperature)
            grad_gram, grad_sums = _gram_backward(doubled, qk_weight, qk_bias, len(x))
            doubled_transposed = doubled.transpose(1, 2)
            grad_tokens = grad_sums[:, None].expand(tokens.shape).clone()
            operators.add_linear_(grad_tokens, at_least_float32(tokens), grad_gram.transpose(1, 2))
            if ctx.dtype == grad_tokens.dtype:
                operators.add_linear_(grad_tokens, branch_grad, mixing.transpose(1, 2))
            else:
                grad_tokens += branch_grad @ mixing
            grad_x, grad_norm_weight, grad_norm_bias = operators.layer_norm_backward(
                grad_tokens.to(x.dtype),
                x,
                mean,
                rstd,
                norm_weight,
                norm_bias,
            )
            if ctx.residual:
                grad_x += grad
            return (
                grad_x,
                grad_norm_weight,
                grad_norm_bias,
                None,
                doubled_transposed @ qk_gram,
                grad_v_weight,
                doubled_transposed @ qk_sums,
                grad_v_bias,
                grad_temperature,
                grad_proj_weight,
                grad_offset.sum(0),
                None,
                None,
            )


def _mixing_backward(
    grad_mixing: Tensor,
    grad_offset: Tensor,
    weights: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    proj_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the attention weights, of v's weight and bias, and of W_proj."""
    num_heads, head_dims, dims = v_weight.shape
    batch_size = len(grad_offset)
    num_rows = head_dims * batch_size
    values, mixed_bias = attend_values(weights, v_weight, v_bias)
    grad_mixing = grad_mixing.transpose(0, 1).reshape(dims, batch_size * dims)  # (C, BC)
    grad_proj_weight = operators.mm(grad_mixing, values.t())
    grad_proj_weight.addmm_(grad_offset.t(), mixed_bias.t())
    grad_values = operators.mm(proj_weight.t(), grad_mixing).view(num_heads, num_rows, dims)
    grad_mixed_bias = (proj_weight.t() @ grad_offset.t()).view(num_heads, num_rows, 1)
    grad_weights = torch.baddbmm(
        grad_mixed_bias * v_bias.transpose(1, 2), grad_values, v_weight.transpose(1, 2)
    )
    columns = weights.flatten(1, 2).transpose(1, 2)  # (h, d, dB)
    return (
        grad_weights.view(weights.shape),
        columns @ grad_values,
        columns @ grad_mixed_bias,
        grad_proj_weight,
    )


def _weights_backward(
    grad_weights: Tensor, weighed: Weighed, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return S (h, 2dB, 2d) and the gradient of the temperature."""
    grad_products, grad_lengths, grad_temperature = weigh_backward(
        grad_weights, weighed, temperature
    )
    num_heads, head_dims, batch_size, _ = grad_weights.shape
    doubled = grad_weights.new_zeros(num_heads, 2 * head_dims, batch_size, 2 * head_dims)
    doubled[:, :head_dims, :, head_dims:] = grad_products
    doubled[:, head_dims:, :, :head_dims] = grad_products.transpose(1, 3)
    doubled.diagonal(dim1=1, dim2=3).copy_(2 * grad_lengths)
    return doubled.flatten(1, 2), grad_temperature


def _gram_backward(
    doubled: Tensor, qk_weight: Tensor, qk_bias: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return W^T S W (B, C, C) and b^T S W (B, C) from S (h, 2dB, 2d)."""
    all_weights = qk_weight.flatten(0, 1)  # (2D, C)
    twice_inner_dims, dims = all_weights.shape
    rows = (doubled @ qk_weight).view(twice_inner_dims, batch_size * dims)
    bias_rows = (doubled @ qk_bias).view(twice_inner_dims, batch_size)
    grad_gram = operators.mm(all_weights.t(), rows).view(dims, batch_size, dims)
    return grad_gram.transpose(0, 1), bias_rows.t() @ all_weights
