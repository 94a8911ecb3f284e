"""Norm, MLP and Gram matrix with backward passes that need less memory or work than autograd's.

Autograd keeps the input of every operation until backward. These functions keep only what is
costly to make again, and make norms and activations again. All are exact: the same sums, with the
same operations where PyTorch has them. They are not differentiable twice.

Legend: R rows (tokens of all images), C channels, D hidden channels, B batch, N tokens an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmvit_backbones.layers.precision import compute_dtype, without_autocast


def _list_onednn_dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available():
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # older processors refuse it
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


_ONEDNN_DTYPES = _list_onednn_dtypes()


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """Return `linear(norm(x))`, keeping only `x` for backward.

    Args:
        x: Tokens (..., C).
        norm: Norm of C channels.
        linear: Linear layer from C channels.
    """
    if not _keeps_for_backward():
        return linear(norm(x))
    return _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias)


def linear_gelu(x: Tensor, linear: nn.Linear) -> Tensor:
    """Return `gelu(linear(x))`, in one pass over the memory where oneDNN can.

    Args:
        x: Tokens (..., C).
        linear: Linear layer from C channels.
    """
    dtype = compute_dtype(x)
    is_plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if is_plain or x.device.type != 'cpu' or dtype not in _ONEDNN_DTYPES:
        return F.gelu(linear(x))
    with without_autocast(x.device):
        return torch.ops.mkldnn._linear_pointwise(
            x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype), 'gelu', [], 'none'
        )


def norm_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """Return `linear2(gelu(fc1(norm(x))))`, keeping `x` and the output of `fc1` for backward.

    Args:
        x: Tokens (..., C).
        norm: Norm of C channels.
        fc1: Linear layer to D channels.
        weight2: Weight (C, D) of the second linear layer.
        bias2: Its bias (C).
    """
    if not _keeps_for_backward():
        return F.linear(linear_gelu(norm(x), fc1), weight2, bias2)
    return _NormMLP.apply(x, norm.weight, norm.bias, norm.eps, fc1.weight, fc1.bias, weight2, bias2)


def add_residual(x: Tensor, branch: Tensor) -> Tensor:
    """Return `x + branch`, in the memory of `branch` where the result has its dtype.

    Args:
        x: Tokens.
        branch: What is added to them, of the same shape, a tensor that nobody needs any more.
    """
    if branch.dtype != torch.promote_types(x.dtype, branch.dtype):
        return x + branch
    return branch.add_(x)


def gram_matrix(tokens: Tensor) -> Tensor:
    """Return X^T X (B, C, C) of tokens (B, N, C), whose backward takes one product, not two."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return tokens.transpose(1, 2) @ tokens
    return _GramMatrix.apply(tokens)


def _keeps_for_backward() -> bool:
    """Whether it is for this module to choose what is kept: a compiler chooses itself."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return torch.is_grad_enabled() and not is_traced


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.eps = eps
        ctx.dtype = compute_dtype(x)
        with without_autocast(x.device):
            normed, mean, rstd = torch.native_layer_norm(
                x, x.shape[-1:], norm_weight, norm_bias, eps
            )
            out = F.linear(
                normed.to(ctx.dtype),
                weight.to(ctx.dtype),
                None if bias is None else bias.to(ctx.dtype),
            )
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, norm_weight, norm_bias, weight = ctx.saved_tensors
        need_x, need_norm_weight, need_norm_bias, _, need_weight, need_bias = ctx.needs_input_grad
        grad_rows = grad.flatten(0, -2).to(ctx.dtype)
        grad_weight = None
        if need_weight:
            normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
            grad_weight = grad_rows.t() @ normed.flatten(0, -2).to(ctx.dtype)
            grad_weight = grad_weight.to(weight.dtype)
            del normed
        grad_bias = grad_rows.sum(0, dtype=weight.dtype) if need_bias else None
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            (grad_rows @ weight.to(ctx.dtype)).view(x.shape).to(x.dtype),
            x,
            x.shape[-1:],
            mean,
            rstd,
            norm_weight,
            norm_bias,
            (need_x, need_norm_weight, need_norm_bias),
        )
        return grad_x, grad_norm_weight, grad_norm_bias, None, grad_weight, grad_bias


class _NormMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        ctx.eps = eps
        ctx.dtype = compute_dtype(x)
        rows = x.flatten(0, -2)  # (R, C)
        with without_autocast(x.device):
            normed, mean, rstd = torch.native_layer_norm(
                rows, rows.shape[1:], norm_weight, norm_bias, eps
            )
            hidden = F.linear(
                normed.to(ctx.dtype), weight1.to(ctx.dtype), bias1.to(ctx.dtype)
            )  # (R, D)
            del normed
            # A fresh tensor, not a view of a matrix, so that the caller may add to it in place.
            out = x.new_empty(x.shape, dtype=ctx.dtype)
            torch.addmm(
                bias2.to(ctx.dtype),
                F.gelu(hidden),
                weight2.to(ctx.dtype).t(),
                out=out.view(-1, out.shape[-1]),
            )
        ctx.save_for_backward(
            rows, mean, rstd, hidden, norm_weight, norm_bias, weight1, bias1, weight2, bias2
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, mean, rstd, hidden, norm_weight, norm_bias, weight1, bias1, weight2, bias2 = (
            ctx.saved_tensors
        )
        need_x, need_norm_weight, need_norm_bias, _, need_weight1, need_bias1, need_weight2, _ = (
            ctx.needs_input_grad
        )
        shape = grad.shape
        grad = grad.reshape(rows.shape).to(ctx.dtype)
        grad_weight2 = grad.t() @ F.gelu(hidden) if need_weight2 else None
        grad_bias2 = grad.sum(0, dtype=bias2.dtype)
        grad_hidden = torch.ops.aten.gelu_backward(grad @ weight2.to(ctx.dtype), hidden)
        grad_weight1 = None
        if need_weight1:
            normed = F.layer_norm(rows, rows.shape[1:], norm_weight, norm_bias, ctx.eps)
            grad_weight1 = grad_hidden.t() @ normed.to(ctx.dtype)
            del normed
        grad_bias1 = grad_hidden.sum(0, dtype=bias1.dtype) if need_bias1 else None
        grad_normed = (grad_hidden @ weight1.to(ctx.dtype)).to(rows.dtype)
        del grad_hidden
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed,
            rows,
            rows.shape[1:],
            mean,
            rstd,
            norm_weight,
            norm_bias,
            (need_x, need_norm_weight, need_norm_bias),
        )
        return (
            grad_x.view(shape) if need_x else None,
            grad_norm_weight,
            grad_norm_bias,
            None,
            None if grad_weight1 is None else grad_weight1.to(weight1.dtype),
            grad_bias1,
            None if grad_weight2 is None else grad_weight2.to(weight2.dtype),
            grad_bias2,
        )


class _GramMatrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return tokens.transpose(1, 2) @ tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (tokens,) = ctx.saved_tensors
        return tokens @ (grad + grad.transpose(1, 2)).to(tokens.dtype)
