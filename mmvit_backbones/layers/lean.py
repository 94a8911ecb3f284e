"""Norm and MLP in one, with a backward pass that needs less memory and work than autograd's.

Autograd keeps the input of every operation until backward. `norm_mlp` keeps the tokens, makes norms
and activations again, and hidden channels too unless they are costly. On a CPU the MLP goes
through its rows in chunks: the hidden channels of a detection image take more memory than a C
library keeps between two allocations, and getting it from the system anew each time costs more than
the GELU itself. That holds in graphs compiled for a CPU too, so there the MLP stays one operator.
It is exact: the same sums, with the same operations where PyTorch has them. It is not
differentiable twice.

Legend: R rows (tokens of all images), C channels, D hidden channels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from mmvit_backbones.layers.precision import can_use_onednn, compute_dtype, without_autocast

# glibc takes every allocation above 32 MiB from the system; half of it leaves room for the rest.
_CHUNK_BYTES = 2**24
# From here on hidden channels are kept for backward: to make them again takes 2 C operations a
# number, which below is about as fast as to bring the number from memory.
_WIDE = 256


def norm_mlp(
    x: Tensor,
    norm: nn.LayerNorm,
    fc1: nn.Linear,
    weight2: Tensor,
    bias2: Tensor,
    residual: bool = False,
) -> Tensor:
    """Return `linear2(gelu(fc1(norm(x))))`, keeping `x` and at most `fc1`'s output for backward.

    Args:
        x: Tokens (..., C).
        norm: Norm of C channels.
        fc1: Linear layer to D channels.
        weight2: Weight (C, D) of the second linear layer.
        bias2: Its bias (C).
        residual: Add `x` to the result.
    """
    if _prefers_plain(x):
        branch = F.linear(F.gelu(fc1(norm(x))), weight2, bias2)
        return x + branch if residual else branch
    keep_hidden = torch.is_grad_enabled() and x.shape[-1] >= _WIDE
    out, _ = _norm_mlp(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        fc1.weight,
        fc1.bias,
        weight2,
        bias2,
        compute_dtype(x),
        keep_hidden,
        residual,
    )
    return out


def add_residual(x: Tensor, branch: Tensor) -> Tensor:
    """Return `x + branch`, in the memory of `branch` where the result has its dtype.

    Args:
        x: Tokens.
        branch: What is added to them, of the same shape, a tensor that nobody needs any more.
    """
    if branch.dtype != torch.promote_types(x.dtype, branch.dtype):
        return x + branch
    return branch.add_(x)


def _prefers_plain(x: Tensor) -> bool:
    """Whether to record plain operations on `x`, for an exported graph or a GPU's compiler."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return x.device.type != 'cpu'
    return is_traced()


def is_traced() -> bool:
    """Whether PyTorch records the operations: a compiler chooses itself what to keep."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def cut_rows(rows: Tensor, bytes_each: int) -> list[int]:
    """Cut rows into about equal parts: on a CPU small ones, elsewhere one.

    Args:
        rows: Tokens (R, C).
        bytes_each: Memory that is needed for each.

    Returns:
        Number of rows in each part.
    """
    count = -(-len(rows) * bytes_each // _CHUNK_BYTES) if rows.device.type == 'cpu' else 1
    count = max(min(count, len(rows)), 1)
    return [len(rows) // count + (i < len(rows) % count) for i in range(count)]


def _add_up(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    """Add a part to a sum that is kept in a dtype and starts with the first part."""
    return part.to(dtype) if total is None else total.add_(part)


class _Scratch(threading.local):
    """Memory of a thread that operations use while they run, kept because getting it is slow."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def borrow(self, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
        """Return uninitialised memory on the device of a tensor."""
        if like.device.type != 'cpu':
            return like.new_empty(shape, dtype=dtype)
        num_bytes = prod(shape) * dtype.itemsize
        if len(self._memory) < num_bytes:
            with torch.inference_mode(False):  # or it could not be written to outside of that mode
                self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory[:num_bytes].view(dtype).view(shape)


_scratch = _Scratch()


@torch.library.custom_op('mmvit_backbones::norm_mlp', mutates_args=())
def _norm_mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    dtype: torch.dtype,
    keep_hidden: bool,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `norm_mlp` in a dtype; also returns the hidden channels (R, D) that are kept."""
    kept = x.new_empty(x.shape[:-1].numel() if keep_hidden else 0, len(weight1), dtype=dtype)
    weight1, bias1, weight2, bias2 = (t.to(dtype) for t in (weight1, bias1, weight2, bias2))
    rows = x.flatten(0, -2)  # (R, C)
    # A fresh tensor, not a view of a matrix, so that the caller may add to it in place.
    out = x.new_empty(x.shape, dtype=x.dtype if residual else dtype)
    sizes = cut_rows(rows, len(weight1) * dtype.itemsize)
    # At full precision the two operations in a part's memory are as fast as the fused one.
    can_fuse_gelu = dtype == torch.bfloat16 and can_use_onednn(x.device, dtype) and not keep_hidden
    kept_parts = kept.split(sizes) if keep_hidden else ()
    longest = 0 if can_fuse_gelu else max(sizes)
    buffer = _scratch.borrow((longest, len(weight1)), dtype, x)
    with without_autocast(x.device):
        for i, (part, out_part) in enumerate(
            zip(rows.split(sizes), out.view(rows.shape).split(sizes), strict=True)
        ):
            normed = F.layer_norm(part, part.shape[1:], norm_weight, norm_bias, eps)
            normed = normed.to(dtype)
            if can_fuse_gelu:
                hidden = torch.ops.mkldnn._linear_pointwise(
                    normed, weight1, bias1, 'gelu', [], 'none'
                )
            else:
                hidden = buffer[: len(normed)]  # (rows of the part, D)
                before = kept_parts[i] if keep_hidden else hidden
                torch.addmm(bias1, normed, weight1.t(), out=before)
                torch.ops.aten.gelu.out(before, out=hidden)
            if not residual:
                torch.addmm(bias2, hidden, weight2.t(), out=out_part)
            elif x.dtype == dtype:
                torch.add(part, bias2, out=out_part).addmm_(hidden, weight2.t())
            else:
                torch.add(part, torch.addmm(bias2, hidden, weight2.t()), out=out_part)
    return out, kept


@_norm_mlp.register_fake
def _(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    dtype: torch.dtype,
    keep_hidden: bool,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    num_kept = x.shape[:-1].numel() if keep_hidden else 0
    out = x.new_empty(x.shape, dtype=x.dtype if residual else dtype)
    return out, x.new_empty(num_kept, len(weight1), dtype=dtype)


@torch.library.custom_op('mmvit_backbones::norm_mlp_backward', mutates_args=())
def _norm_mlp_backward(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    dtype: torch.dtype,
    residual: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Compute the gradients of `norm_mlp`'s tensors, empty ones for those not needed."""
    need_x, need_norm_weight, need_norm_bias, *need_linear = needed
    need_weight1, need_bias1, need_weight2, need_bias2 = need_linear
    rows = x.flatten(0, -2)
    grad_rows = grad.reshape(rows.shape).to(dtype)
    param_dtype = weight1.dtype
    grad_weight1 = grad_bias1 = grad_weight2 = None
    grad_bias2 = grad_rows.sum(0, dtype=weight2.dtype) if need_bias2 else None
    weight1, bias1, weight2 = weight1.to(dtype), bias1.to(dtype), weight2.to(dtype)
    sizes = cut_rows(rows, len(weight1) * dtype.itemsize)
    buffers = _scratch.borrow((2, max(sizes), len(weight1)), dtype, x)
    normed, mean, rstd = torch.native_layer_norm(rows, rows.shape[1:], norm_weight, norm_bias, eps)
    grad_normed = torch.empty_like(rows, dtype=dtype)
    kept_parts = kept.split(sizes) if len(kept) else [None] * len(sizes)
    for normed_part, grad_part, grad_normed_part, before in zip(
        normed.split(sizes),
        grad_rows.split(sizes),
        grad_normed.split(sizes),
        kept_parts,
        strict=True,
    ):
        normed_part = normed_part.to(dtype)
        hidden, grad_hidden = buffers[:, : len(normed_part)]  # (rows of the part, D) each
        if before is None:
            before = torch.addmm(bias1, normed_part, weight1.t(), out=hidden)
        torch.mm(grad_part, weight2, out=grad_hidden)
        torch.ops.aten.gelu_backward.grad_input(grad_hidden, before, grad_input=grad_hidden)
        torch.mm(grad_hidden, weight1, out=grad_normed_part)
        if need_weight2:
            torch.ops.aten.gelu.out(before, out=hidden)
            grad_weight2 = _add_up(grad_weight2, grad_part.t() @ hidden, param_dtype)
        if need_weight1:
            grad_weight1 = _add_up(grad_weight1, grad_hidden.t() @ normed_part, param_dtype)
        if need_bias1:
            grad_bias1 = _add_up(grad_bias1, grad_hidden.sum(0, dtype=param_dtype), param_dtype)
    del normed
    norm_grads = torch.ops.aten.native_layer_norm_backward(
        grad_normed.to(rows.dtype),
        rows,
        rows.shape[1:],
        mean,
        rstd,
        norm_weight,
        norm_bias,
        (need_x, need_norm_weight, need_norm_bias),
    )
    grad_x, *other_norm_grads = norm_grads
    if need_x:
        grad_x = grad_x.view(x.shape)
        if residual:
            grad_x += grad
    grads = [grad_x, *other_norm_grads, grad_weight1, grad_bias1, grad_weight2, grad_bias2]
    return [x.new_empty(0) if t is None else t for t in grads]


@_norm_mlp_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    dtype: torch.dtype,
    residual: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    bias2 = weight2[:, 0]
    tensors = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    return [
        t.new_empty(t.shape) if need and t is not None else x.new_empty(0)
        for t, need in zip(tensors, needed, strict=True)
    ]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, ctx.eps, weight1, bias1, weight2, _, *options = inputs
    ctx.dtype, _, ctx.residual = options
    ctx.save_for_backward(x, output[1], norm_weight, norm_bias, weight1, bias1, weight2)
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    x, kept, norm_weight, norm_bias, weight1, bias1, weight2 = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4, 5, 6, 7)]
    grads = _norm_mlp_backward(
        grad,
        x,
        kept,
        norm_weight,
        norm_bias,
        ctx.eps,
        weight1,
        bias1,
        weight2,
        ctx.dtype,
        ctx.residual,
        needed,
    )
    grads = [g if need else None for g, need in zip(grads, needed, strict=True)]
    return (*grads[:3], None, *grads[3:], None, None, None)


_norm_mlp.register_autograd(_run_backward, setup_context=_keep_for_backward)


@register_flop_formula(torch.ops.mmvit_backbones.norm_mlp)
def _count_flops(
    x_shape: Sequence[int], norm_weight: Any, norm_bias: Any, eps: float, *args: Any, **kwargs: Any
) -> int:
    """Tell PyTorch's counter what the two linear layers cost."""
    weight1_shape = args[0]
    return 4 * prod(x_shape[:-1]) * prod(weight1_shape)


@register_flop_formula(torch.ops.mmvit_backbones.norm_mlp_backward)
def _count_backward_flops(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    kept_shape: Sequence[int],
    norm_weight: Any,
    norm_bias: Any,
    eps: float,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Tell it what their backward pass costs, with the first layer where it runs again."""
    weight1_shape = args[0]
    products = 4 if kept_shape[0] else 5
    return 2 * products * prod(x_shape[:-1]) * prod(weight1_shape)
