"""XCiT's local patch interaction, LPI, with less memory in training.

In the paper's order, the branch saves two maps for backward instead of six: its input and the
output of the first convolution. The backward pass recomputes what pointwise operations make of
them.
LayerScale is folded into the second convolution.

Legend: B batch, C channels, H x W = N tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.kernels import operators
from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.expected import why_other_class, why_other_padding
from mmvit_backbones.layers.folding import scaled_parameters
from mmvit_backbones.layers.local_patch_interaction import LocalPatchInteraction
from mmvit_backbones.layers.precision import without_autocast
from mmvit_backbones.layers.tokens import Size, to_map, to_tokens


def refusal(
    mode: str, x: Tensor, norm: nn.LayerNorm, layer: LocalPatchInteraction, size: Size
) -> str | None:
    """Return why the kernel does not serve a branch; None if it does."""
    if reason := why_other_class(nn.Conv2d, layer.conv1, layer.conv2):
        return reason
    if x.numel() == 0:
        return 'there are no images, for which the backward pass of BatchNorm ends the process'
    if reason := why_other_class(nn.BatchNorm2d, layer.bn):
        return reason
    if layer.norm_first:
        return 'it serves the order of the paper only'
    if layer.bn.momentum is None or layer.bn.running_mean is None:
        return 'the BatchNorm has no running mean of a fixed momentum'
    return why_other_padding(*_convolutions(layer))


def run(
    mode: str,
    x: Tensor,
    norm: nn.LayerNorm,
    layer: LocalPatchInteraction,
    scale: Tensor | None,
    residual: bool,
    size: Size,
) -> Tensor:
    """Compute `scale * layer(norm(x), size)` of tokens (B, N, C), plus `x` if `residual`."""
    conv1, conv2 = _convolutions(layer)
    weight, bias = (conv2.weight, conv2.bias) if scale is None else scaled_parameters(conv2, scale)
    return _LocalInteraction.apply(
        x,
        size,
        norm,
        norm.weight,
        norm.bias,
        conv1,
        conv1.weight,
        conv1.bias,
        layer.bn,
        layer.bn.weight,
        layer.bn.bias,
        conv2,
        weight,
        bias,
        compute_dtype(x),
        residual,
    )


def _convolutions(layer: LocalPatchInteraction) -> tuple[nn.Conv2d, nn.Conv2d]:
    assert isinstance(layer.conv1, nn.Conv2d)
    return layer.conv1, layer.conv2


class _LocalInteraction(torch.autograd.Function):
    """`conv2(bn(gelu(conv1(norm(x)))))`, plus `x` if `residual`.

    The modules give sizes and the state of the BatchNorm, their parameters come as arguments.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        size: Size,
        norm: nn.LayerNorm,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        conv1: nn.Conv2d,
        weight1: Tensor,
        bias1: Tensor | None,
        bn: nn.BatchNorm2d,
        bn_weight: Tensor | None,
        bn_bias: Tensor | None,
        conv2: nn.Conv2d,
        weight2: Tensor,
        bias2: Tensor | None,
        dtype: torch.dtype,
        residual: bool,
    ) -> Tensor:
        with without_autocast(x.device):
            tokens = F.layer_norm(x, norm.normalized_shape, norm_weight, norm_bias, norm.eps)
            hidden = _convolve(to_map(tokens.to(dtype), size), conv1, weight1, bias1)
            normalized, mean, rstd = operators.batch_norm(F.gelu(hidden), bn, bn_weight, bn_bias)
            out = to_tokens(_convolve(normalized, conv2, weight2, bias2))
        ctx.save_for_backward(
            x, norm_weight, norm_bias, hidden, mean, rstd, bn_weight, bn_bias, weight1, weight2
        )
        ctx.size, ctx.norm_eps, ctx.dtype, ctx.residual = size, norm.eps, dtype, residual
        ctx.convolutions, ctx.has_biases = (conv1, conv2), (bias1 is not None, bias2 is not None)
        ctx.bn_training = bn.training
        return x + out if residual else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, norm_weight, norm_bias, hidden, mean, rstd, bn_weight, bn_bias, weight1, weight2 = (
            ctx.saved_tensors
        )
        (conv1, conv2), (has_bias1, has_bias2) = ctx.convolutions, ctx.has_biases
        with without_autocast(x.device):
            activated = F.gelu(hidden)
            normalized = operators.apply_batch_norm(activated, mean, rstd, bn_weight, bn_bias)
            branch_grad = to_map(grad.to(ctx.dtype).contiguous(), ctx.size)
            grad_normalized, grad_weight2, grad_bias2 = operators.convolution_backward(
                branch_grad, normalized, weight2, has_bias2, conv2
            )
            del normalized
            grad_hidden, grad_bn_weight, grad_bn_bias = operators.batch_norm_backward(
                grad_normalized, activated, mean, rstd, bn_weight, ctx.bn_training
            )
            del activated, grad_normalized
            operators.gelu_backward_(grad_hidden, hidden)
            tokens, token_mean, token_rstd = operators.layer_norm(
                x, norm_weight, norm_bias, ctx.norm_eps
            )
            grad_tokens, grad_weight1, grad_bias1 = operators.convolution_backward(
                grad_hidden, to_map(tokens.to(ctx.dtype), ctx.size), weight1, has_bias1, conv1
            )
            del grad_hidden, tokens
            grad_x, grad_norm_weight, grad_norm_bias = operators.layer_norm_backward(
                to_tokens(grad_tokens).to(x.dtype),
                x,
                token_mean,
                token_rstd,
                norm_weight,
                norm_bias,
            )
            if ctx.residual:
                grad_x += grad
        return (
            grad_x,
            None,
            None,
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_weight1,
            grad_bias1,
            None,
            grad_bn_weight if bn_weight is not None else None,
            grad_bn_bias if bn_bias is not None else None,
            None,
            grad_weight2,
            grad_bias2,
            None,
            None,
        )


def _convolve(x: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    return conv._conv_forward(x, weight.to(x.dtype), bias)
