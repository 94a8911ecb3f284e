"""Norm, MLP and Gram matrix with backward passes that need less memory or work than autograd's.

Autograd keeps the input of every operation until backward. These functions keep only the tokens
and make norms, hidden channels and activations again. On a CPU the MLP goes through its rows in
chunks: the hidden channels of a detection image take more memory than a C library keeps between
two allocations, and getting it from the system anew each time costs more than the GELU itself. All
are exact: the same sums, with the same operations where PyTorch has them. They are not
differentiable twice.

Legend: R rows (tokens of all images), C channels, D hidden channels, B batch, N tokens an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmvit_backbones.layers.precision import can_use_onednn, compute_dtype, without_autocast

# glibc takes every allocation above 32 MiB from the system; half of it leaves room for the rest.
_CHUNK_BYTES = 2**24


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """Return `linear(norm(x))`, keeping only `x` for backward.

    Args:
        x: Tokens (..., C).
        norm: Norm of C channels.
        linear: Linear layer from C channels.
    """
    if is_traced():
        return linear(norm(x))
    return _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias)


def norm_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """Return `linear2(gelu(fc1(norm(x))))`, keeping only `x` for backward.

    Args:
        x: Tokens (..., C).
        norm: Norm of C channels.
        fc1: Linear layer to D channels.
        weight2: Weight (C, D) of the second linear layer.
        bias2: Its bias (C).
    """
    if is_traced():
        return F.linear(F.gelu(fc1(norm(x))), weight2, bias2)
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
    if is_traced():
        return tokens.transpose(1, 2) @ tokens
    return _GramMatrix.apply(tokens)


def is_traced() -> bool:
    """Whether PyTorch records the operations: a compiler chooses itself what to keep."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _chunk_rows(rows: Tensor, width: int, dtype: torch.dtype) -> list[slice]:
    """Cut rows so that a chunk of `width` channels is small on a CPU, and not at all elsewhere."""
    step = len(rows)
    if rows.device.type == 'cpu':
        step = max(_CHUNK_BYTES // (width * dtype.itemsize), 1)
    return [slice(i, min(i + step, len(rows))) for i in range(0, len(rows), step)]


def _make_buffer(chunks: list[slice], like: Tensor) -> Tensor:
    """Return memory for the longest chunk's hidden channels, in the dtype of weights (D, C)."""
    longest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    return like.new_empty(longest, len(like))


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
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        with without_autocast(x.device):
            normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
            return F.linear(
                normed.to(ctx.dtype),
                weight.to(ctx.dtype),
                None if bias is None else bias.to(ctx.dtype),
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        need_x, need_norm_weight, need_norm_bias, _, need_weight, need_bias = ctx.needs_input_grad
        normed, mean, rstd = torch.native_layer_norm(
            x, x.shape[-1:], norm_weight, norm_bias, ctx.eps
        )
        grad_rows = grad.flatten(0, -2).to(ctx.dtype)
        grad_weight = None
        if need_weight:
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
        ctx.dtype = dtype = compute_dtype(x)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight1, bias1, weight2)
        weight1, bias1, weight2, bias2 = (t.to(dtype) for t in (weight1, bias1, weight2, bias2))
        rows = x.flatten(0, -2)  # (R, C)
        # A fresh tensor, not a view of a matrix, so that the caller may add to it in place.
        out = x.new_empty(x.shape, dtype=dtype)
        out_rows = out.view(rows.shape)
        chunks = _chunk_rows(rows, len(weight1), dtype)
        # At full precision the two operations in a chunk's own memory are as fast as the fused one.
        can_fuse_gelu = dtype == torch.bfloat16 and can_use_onednn(x.device, dtype)
        buffer = None if can_fuse_gelu else _make_buffer(chunks, weight1)
        with without_autocast(x.device):
            for chunk in chunks:
                normed = F.layer_norm(rows[chunk], rows.shape[1:], norm_weight, norm_bias, eps)
                normed = normed.to(dtype)
                if buffer is None:
                    hidden = torch.ops.mkldnn._linear_pointwise(
                        normed, weight1, bias1, 'gelu', [], 'none'
                    )
                else:
                    hidden = buffer[: len(normed)]  # (chunk, D)
                    torch.addmm(bias1, normed, weight1.t(), out=hidden)
                    torch.ops.aten.gelu_(hidden)
                torch.addmm(bias2, hidden, weight2.t(), out=out_rows[chunk])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight1, bias1, weight2 = ctx.saved_tensors
        need_x, need_norm_weight, need_norm_bias, _, *need_linear = ctx.needs_input_grad
        need_weight1, need_bias1, need_weight2, need_bias2 = need_linear
        dtype = ctx.dtype
        rows = x.flatten(0, -2)
        grad_rows = grad.reshape(rows.shape).to(dtype)
        grad_weight1 = torch.zeros_like(weight1) if need_weight1 else None
        grad_bias1 = torch.zeros_like(bias1) if need_bias1 else None
        grad_weight2 = torch.zeros_like(weight2) if need_weight2 else None
        grad_bias2 = grad_rows.sum(0, dtype=weight2.dtype) if need_bias2 else None
        weight1, bias1, weight2 = weight1.to(dtype), bias1.to(dtype), weight2.to(dtype)
        chunks = _chunk_rows(rows, len(weight1), dtype)
        hidden_buffer, grad_buffer = _make_buffer(chunks, weight1), _make_buffer(chunks, weight1)
        normed, mean, rstd = torch.native_layer_norm(
            rows, rows.shape[1:], norm_weight, norm_bias, ctx.eps
        )
        grad_normed = torch.empty_like(rows, dtype=dtype)
        for chunk in chunks:
            normed_chunk = normed[chunk].to(dtype)
            hidden = hidden_buffer[: len(normed_chunk)]  # (chunk, D)
            torch.addmm(bias1, normed_chunk, weight1.t(), out=hidden)
            grad_hidden = grad_buffer[: len(normed_chunk)]
            torch.mm(grad_rows[chunk], weight2, out=grad_hidden)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
            torch.mm(grad_hidden, weight1, out=grad_normed[chunk])
            if grad_weight2 is not None:
                grad_weight2 += grad_rows[chunk].t() @ torch.ops.aten.gelu_(hidden)
            if grad_weight1 is not None:
                grad_weight1 += grad_hidden.t() @ normed_chunk
            if grad_bias1 is not None:
                grad_bias1 += grad_hidden.sum(0, dtype=grad_bias1.dtype)
        del normed
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed.to(rows.dtype),
            rows,
            rows.shape[1:],
            mean,
            rstd,
            norm_weight,
            norm_bias,
            (need_x, need_norm_weight, need_norm_bias),
        )
        return (
            grad_x.view(x.shape) if need_x else None,
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_weight1,
            grad_bias1,
            grad_weight2,
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
