"""Global attention to a subsampled grid.

Serves the branch `attn(norm(x), size)` of Twins-SVT (arXiv 2104.13840, section 3.2). Queries and
output are computed by `operators.linear`. For the backward pass of the norm, `q` and the layer that
subsamples, only the input is saved.

Legend: B batch, H x W = N tokens, M tokens of the subsampled grid, C channels, h heads, d channels
per head, D channels of the layer that subsamples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.kernels import operators
from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.expected import why_other_class, why_other_padding
from mmvit_backbones.kernels.modes import INFERENCE
from mmvit_backbones.kernels.windows import ProjectWindows, Tiling
from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.precision import without_autocast
from mmvit_backbones.layers.subsampled_attention import SubsampledAttention
from mmvit_backbones.layers.tokens import Size, pad_to_multiple, to_map, to_tokens


def refusal(
    mode: str, x: Tensor, norm: nn.LayerNorm, layer: SubsampledAttention, size: Size
) -> str | None:
    """Return why the kernel does not serve a branch; None if it does."""
    if x.device.type != 'cpu':
        return 'no gain has been measured on this device'
    if mode == INFERENCE and compute_dtype(x).itemsize < 4:
        return 'in half precision the reference infers as fast'
    subsampling = _subsampling(layer)
    kind = nn.Conv2d if layer.sr is not None or layer.fused_reduction else nn.Linear
    return (
        why_other_class(nn.Linear, layer.q, layer.proj)
        or why_other_class(kind, subsampling)
        or why_other_class(nn.Dropout, layer.attn_drop)
        or (why_other_padding(subsampling) if isinstance(subsampling, nn.Conv2d) else None)
    )


def run(
    mode: str,
    x: Tensor,
    norm: nn.LayerNorm,
    layer: SubsampledAttention,
    scale: Tensor | None,
    residual: bool,
    size: Size,
) -> Tensor:
    """Compute `scale * layer(norm(x), size)` of tokens (B, N, C), plus `x` if `residual`."""
    subsampling = _subsampling(layer)
    q, kv = _NormProject.apply(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        layer.q.weight,
        layer.q.bias,
        subsampling.weight,
        subsampling.bias,
        subsampling,
        layer.sr_ratio,
        layer.num_heads,
        size,
    )
    if layer.sr is not None and layer.norm is not None:
        kv = layer.kv(layer.norm(kv))
    k, v = rearrange(kv, 'b m (two h d) -> two b h m d', two=2, h=layer.num_heads)
    attended = attention(q, k, v, layer.attn_drop)  # (B, h, N, d)
    out = ProjectWindows.apply(Tiling.whole(*size), layer.proj.weight, layer.proj.bias, attended)
    out = layer.drop(out)
    out = out if scale is None else scale * out
    return x + out if residual else out


def _subsampling(layer: SubsampledAttention) -> nn.Module:
    """Return the layer that subsamples, or else `kv`."""
    return layer.kv if layer.sr is None else layer.sr


class _NormProject(torch.autograd.Function):
    """Queries (B, h, N, d) and subsampled tokens (B, M, D) of the normalized tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        q_weight: Tensor,
        q_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        subsampling: nn.Conv2d | nn.Linear,
        ratio: int,
        num_heads: int,
        size: Size,
    ) -> tuple[Tensor, Tensor]:
        ctx.eps, ctx.subsampling, ctx.ratio, ctx.size = eps, subsampling, ratio, size
        ctx.dtype = dtype = compute_dtype(x)
        ctx.has_bias = q_bias is not None, bias is not None
        ctx.save_for_backward(x, norm_weight, norm_bias, q_weight, weight)
        q_bias, bias = (None if b is None else b.to(dtype) for b in (q_bias, bias))
        with without_autocast(x.device):
            normalized = F.layer_norm(x, x.shape[2:], norm_weight, norm_bias, eps).to(dtype)
            rows = normalized.flatten(0, 1)
            q = operators.linear(rows, q_weight.to(dtype), q_bias)
            if isinstance(subsampling, nn.Conv2d):
                feature_map = pad_to_multiple(to_map(normalized, size), ratio)
                feature_map = subsampling._conv_forward(feature_map, weight.to(dtype), bias)
                ctx.out_size = feature_map.shape[2:]
                out = to_tokens(feature_map)
            else:
                out = operators.linear(rows, weight.to(dtype), bias).view(*x.shape[:2], len(weight))
        return rearrange(q, '(b n) (h d) -> b h n d', n=x.shape[1], h=num_heads), out

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, norm_weight, norm_bias, q_weight, weight = ctx.saved_tensors
        dtype, (has_q_bias, has_bias) = ctx.dtype, ctx.has_bias
        with without_autocast(x.device):
            normalized, mean, rstd = operators.layer_norm(x, norm_weight, norm_bias, ctx.eps)
            normalized = normalized.to(dtype)
            rows = normalized.flatten(0, 1)
            grad_rows = rearrange(grad_q, 'b h n d -> (b n) (h d)')
            grad_normalized, grad_q_weight, grad_q_bias = _linear_backward(
                grad_rows, rows, q_weight, has_q_bias
            )
            grad_normalized = grad_normalized.view(x.shape)
            if isinstance(ctx.subsampling, nn.Conv2d):
                feature_map = pad_to_multiple(to_map(normalized, ctx.size), ctx.ratio)
                grad_map, grad_weight, grad_bias = operators.convolution_backward(
                    to_map(grad_out, ctx.out_size), feature_map, weight, has_bias, ctx.subsampling
                )
                height, width = ctx.size
                grad_normalized += to_tokens(grad_map[:, :, :height, :width])
            else:
                part, grad_weight, grad_bias = _linear_backward(
                    grad_out.flatten(0, 1), rows, weight, has_bias
                )
                grad_normalized += part.view(x.shape)
            grad_x, grad_norm_weight, grad_norm_bias = operators.layer_norm_backward(
                grad_normalized.to(x.dtype), x, mean, rstd, norm_weight, norm_bias
            )
        return (
            grad_x,
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_q_weight,
            grad_q_bias,
            grad_weight,
            grad_bias,
            None,
            None,
            None,
            None,
        )


def _linear_backward(
    grad: Tensor, rows: Tensor, weight: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of a linear layer's rows, weight and bias."""
    grad_rows = operators.linear(grad, weight.to(grad.dtype).t())
    grad_weight = operators.weight_gradient(grad, rows).to(weight.dtype).contiguous()
    return grad_rows, grad_weight, grad.sum(0).to(weight.dtype) if has_bias else None
