"""Cross-covariance attention with channels first, for few tokens.

Serves the branch `scale * attn(norm(x))` of XCiT (arXiv 2106.09681, section 3.2) where the Gram
form does not pay. Queries, keys and values are computed channels first, so that the heads of an
image are views of them: the reference transposes them, and the attended values once more.

In fp32 the kernel goes through groups of images. The backward pass recomputes queries, keys and
values: the input is the only tensor of N tokens that is saved. In bf16 it serves inference only,
in products that are batched over the images.

Legend: B batch, g images of a group, N tokens, C channels, h heads, d channels per head, D = hd.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.kernels import operators
from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.channel_weights import (
    Weighed,
    weigh,
    weigh_backward,
    why_other_layers,
)
from mmvit_backbones.kernels.expected import drops
from mmvit_backbones.kernels.modes import TRAINING
from mmvit_backbones.layers.cross_covariance_attention import (
    CrossCovarianceAttention,
    channel_attention_weights,
)
from mmvit_backbones.layers.folding import scaled_parameters
from mmvit_backbones.layers.precision import without_autocast

# Of the queries, keys and values of a group.
GROUP_BYTES = 2**22


def refusal(
    mode: str, x: Tensor, norm: nn.LayerNorm, layer: CrossCovarianceAttention
) -> str | None:
    """Return why the kernel does not serve a branch; None if it does."""
    if reason := why_other_layers(layer):
        return reason
    if drops(layer.attn_drop, layer.drop):
        return 'dropout is active'
    if x.device.type != 'cpu':
        return 'products image by image are slow on this device'
    dtype = compute_dtype(x)
    if dtype == torch.float16:
        return 'sums over many tokens exceed the range of fp16'
    if dtype == torch.bfloat16 and mode == TRAINING:
        return 'the reference trains faster in bf16'
    if dtype == torch.bfloat16 and not operators.runs_on_onednn(x.device, dtype):
        return 'products in bf16 are slow on this processor'
    return None


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
    if compute_dtype(x) == torch.bfloat16:
        assert bias is not None
        out = _by_batched_products(x, norm, layer, weight, bias)
        return x + out if residual else out
    return _DirectAttention.apply(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        layer.qkv.weight,
        layer.qkv.bias,
        layer.temperature,
        weight,
        bias,
        residual,
    )


def _by_batched_products(
    x: Tensor, norm: nn.LayerNorm, layer: CrossCovarianceAttention, weight: Tensor, bias: Tensor
) -> Tensor:
    """Compute the branch of tokens (B, N, C) in bf16, with the weight (C, D) and bias of `proj`."""
    batch_size, num_tokens, _ = x.shape
    with without_autocast(x.device):
        channels = norm(x).bfloat16().transpose(1, 2)  # (B, C, N)
        qkv_weights = layer.qkv.weight.bfloat16().chunk(3)  # (D, C) each
        if layer.qkv.bias is None:
            biases = channels.new_zeros(3, 1, 1)
        else:
            biases = layer.qkv.bias.bfloat16().view(3, -1, 1)
        q, k, v = (
            torch.baddbmm(b, w.expand(batch_size, *w.shape), channels).view(
                batch_size, layer.num_heads, -1, num_tokens
            )
            for b, w in zip(biases, qkv_weights, strict=True)
        )  # (B, h, d, N) each
        attended = channel_attention_weights(q, k, layer.temperature).bfloat16() @ v
        tokens = attended.flatten(1, 2).transpose(1, 2)  # (B, N, D)
        weight = weight.bfloat16().t()
        return torch.baddbmm(bias.bfloat16(), tokens, weight.expand(batch_size, *weight.shape))


def _groups(x: Tensor, num_rows: int) -> tuple[Tensor, ...]:
    """Split images (B, N, C) into groups, so that `num_rows` channels of a group fit the cache."""
    if x.numel() == 0:
        return ()
    return x.split(max(1, GROUP_BYTES // (num_rows * x.shape[1] * x.itemsize)))


def _project(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return queries, keys and values (3D, gN) of tokens (gN, C)."""
    qkv = operators.linear(weight, rows)
    return qkv if bias is None else qkv.add_(bias[:, None])


def _heads(group: Tensor, temperature: Tensor, qkv_weight: Tensor) -> tuple[int, ...]:
    """Return (3, h, d, g, N) for a group (g, N, C)."""
    num_heads = len(temperature)
    return 3, num_heads, len(qkv_weight) // (3 * num_heads), *group.shape[:2]


def _multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the products (h, m, g, n) of (h, m, g, k) and (h, k, g, n), image by image."""
    products = [x @ y for x, y in zip(a.unbind(2), b.unbind(2), strict=True)]
    return torch.stack(products, dim=2, out=out)


def _weigh(qkv: Tensor, temperature: Tensor) -> Weighed:
    """Return the attention weights of queries, keys and values (3, h, d, g, N)."""
    q, k, _ = qkv
    squared_lengths = torch.linalg.vector_norm(qkv[:2], dim=-1).square()  # (2, h, d, g)
    squared_lengths = rearrange(squared_lengths, 'two h d g -> h g (two d)')
    return weigh(_multiply(q, k.transpose(1, 3)), squared_lengths, temperature)


class _DirectAttention(torch.autograd.Function):
    """The branch with a backward pass of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        qkv_weight: Tensor,
        qkv_bias: Tensor | None,
        temperature: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        residual: bool,
    ) -> Tensor:
        ctx.save_for_backward(
            x, norm_weight, norm_bias, qkv_weight, qkv_bias, temperature, proj_weight
        )
        ctx.eps, ctx.residual = eps, residual
        out = torch.empty_like(x)
        for group, out_group in zip(*(_groups(t, len(qkv_weight)) for t in (x, out)), strict=True):
            heads = _heads(group, temperature, qkv_weight)
            normalized = F.layer_norm(group, x.shape[2:], norm_weight, norm_bias, eps).flatten(0, 1)
            qkv = _project(normalized, qkv_weight, qkv_bias).view(heads)
            attended = _multiply(_weigh(qkv, temperature).weights, qkv[2]).view(-1, len(normalized))
            mixed = operators.linear(attended.t(), proj_weight, proj_bias).view(group.shape)
            out_group.copy_(group + mixed if residual else mixed)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, norm_weight, norm_bias, qkv_weight, qkv_bias, temperature, proj_weight = (
            ctx.saved_tensors
        )
        proj_transposed = proj_weight.t().contiguous()
        grad_qkv_weight, grad_proj_weight = (torch.zeros_like(t) for t in (qkv_weight, proj_weight))
        grad_qkv_bias = qkv_weight.new_zeros(len(qkv_weight))
        grad_temperature = torch.zeros_like(temperature)
        grad_normalized = torch.empty_like(x)
        with without_autocast(x.device):
            all_normalized, mean, rstd = operators.layer_norm(x, norm_weight, norm_bias, ctx.eps)
            groups = (_groups(t, len(qkv_weight)) for t in (all_normalized, grad, grad_normalized))
            for normalized, grad_out, grad_group in zip(*groups, strict=True):
                heads = _heads(normalized, temperature, qkv_weight)
                normalized, grad_out = normalized.flatten(0, 1), grad_out.flatten(0, 1)  # (gN, C)
                qkv = _project(normalized, qkv_weight, qkv_bias).view(heads)
                q, k, v = qkv
                weighed = _weigh(qkv, temperature)
                attended = _multiply(weighed.weights, v).view(-1, len(normalized))  # (D, gN)
                grad_proj_weight += operators.linear(grad_out.t(), attended)
                grad_attended = operators.linear(proj_transposed, grad_out).view(v.shape)
                grad_weights = _multiply(grad_attended, v.transpose(1, 3))
                grad_products, grad_lengths, grad_factors = weigh_backward(
                    grad_weights, weighed, temperature
                )
                grad_temperature += grad_factors
                grad_qkv = torch.empty_like(qkv)
                _multiply(grad_products, k, out=grad_qkv[0])
                _multiply(grad_products.transpose(1, 3), q, out=grad_qkv[1])
                _multiply(weighed.weights.transpose(1, 3), grad_attended, out=grad_qkv[2])
                factors = rearrange(grad_lengths, 'h g (two d) -> two h d g 1', two=2)
                grad_qkv[:2].addcmul_(qkv[:2], factors, value=2)
                grad_rows = grad_qkv.view(-1, len(normalized))  # (3D, gN)
                grad_qkv_weight += operators.mm(grad_rows, normalized)
                grad_qkv_bias += grad_rows.sum(1)
                grad_group.copy_(operators.mm(grad_rows.t(), qkv_weight).view(grad_group.shape))
            grad_x, grad_norm_weight, grad_norm_bias = operators.layer_norm_backward(
                grad_normalized, x, mean, rstd, norm_weight, norm_bias
            )
        if ctx.residual:
            grad_x += grad
        return (
            grad_x,
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_qkv_weight,
            None if qkv_bias is None else grad_qkv_bias,
            grad_temperature,
            grad_proj_weight,
            grad.sum((0, 1)),
            None,
        )
