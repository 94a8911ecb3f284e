"""LayerNorm and MLP in one operator with a backward pass of its own.

Serves the branch `scale * mlp(norm(x))`. The operator saves its input and, at C > 256, the output
of `fc1` (R, D). Backward recomputes the rest. On a CPU the operator goes through its tokens in
chunks. The hidden activation of a detection image exceeds 32 MiB; glibc returns such blocks to the
system when they are freed, and to request them again in every layer costs more than the GELU.
Graphs that are compiled for a CPU gain as much, so there the operator stays one node. In half
precision and without gradients, smaller hidden activations are left to the compiler.

In half precision the gradients of weights and biases are rounded chunk by chunk, then added in the
dtype of the parameters. Where chunks nearly cancel, that is less exact than the reference.

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

from mmvit_backbones.kernels import operators
from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.expected import drops, why_no_bias, why_other_class
from mmvit_backbones.kernels.modes import COMPILE, is_static
from mmvit_backbones.layers.folding import scaled_parameters
from mmvit_backbones.layers.mlp import MLP
from mmvit_backbones.layers.precision import without_autocast

# glibc returns every allocation above 32 MiB to the system; half of it leaves room for the rest.
CHUNK_BYTES = 2**24
# oneDNN allocates the outputs of its products and of GELU in the same pass.
ONEDNN_CHUNK_BYTES = 2**22
# Of the hidden activation, for graphs without gradients in half precision.
MIN_BYTES_IN_GRAPHS = 2**24
# Beyond these the hidden activation is saved rather than recomputed. Recomputing one value costs 2C
# FLOPs, which for smaller C is about as fast as loading it.
MAX_CHANNELS_TO_RECOMPUTE = 256


def refusal(mode: str, x: Tensor, norm: nn.LayerNorm, layer: MLP) -> str | None:
    """Return why the kernel does not serve a branch; None if it does."""
    if not operators.HAS_CUSTOM_OPS:
        return 'this PyTorch has no torch.library.custom_op'
    if reason := (
        why_other_class(nn.Linear, layer.fc1, layer.fc2)
        or why_other_class(nn.Dropout, layer.drop)
        or why_no_bias(layer.fc1, layer.fc2)
    ):
        return reason
    if drops(layer.drop):
        return 'dropout is active'
    if mode == COMPILE:
        return _why_compilers_do_as_well(x, layer)
    return None


def _why_compilers_do_as_well(x: Tensor, layer: MLP) -> str | None:
    """Return why a compiled graph of the reference gives as much; None if it does not."""
    if x.device.type != 'cpu':
        return 'compilers fuse these layers on this device'
    dtype = compute_dtype(x)
    if torch.is_grad_enabled() or dtype.itemsize > 2 or not is_static(*x.shape):
        return None
    # A compiled graph holds buffers for reuse, and this operator allocates its own beside them.
    if x.shape[:-1].numel() * layer.fc1.out_features * dtype.itemsize < MIN_BYTES_IN_GRAPHS:
        return 'compilers fuse these layers for so few tokens in half precision'
    return None


def run(
    mode: str,
    x: Tensor,
    norm: nn.LayerNorm,
    layer: MLP,
    scale: Tensor | None,
    residual: bool,
) -> Tensor:
    """Compute the branch `scale * layer(norm(x))` of tokens (..., C), plus `x` if `residual`."""
    fc1, fc2 = layer.fc1, layer.fc2
    weight2, bias2 = (fc2.weight, fc2.bias) if scale is None else scaled_parameters(fc2, scale)
    out, _ = norm_mlp(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        fc1.weight,
        fc1.bias,
        weight2,
        bias2,
        compute_dtype(x),
        torch.is_grad_enabled() and x.shape[-1] > MAX_CHANNELS_TO_RECOMPUTE,
        residual,
    )
    return out


def chunk_sizes(rows: Tensor, hidden_dims: int, dtype: torch.dtype) -> list[int]:
    """Split rows into chunks of about equal size: small ones on a CPU, a single one elsewhere.

    Args:
        rows: Tokens (R, C).
        hidden_dims: Channels of the hidden activation.
        dtype: Its dtype.

    Returns:
        Number of rows of each chunk.
    """
    chunk_bytes = ONEDNN_CHUNK_BYTES if _by_onednn(rows, dtype) else CHUNK_BYTES
    num_bytes = len(rows) * hidden_dims * dtype.itemsize
    count = -(-num_bytes // chunk_bytes) if rows.device.type == 'cpu' else 1
    count = max(min(count, len(rows)), 1)
    return [len(rows) // count + (i < len(rows) % count) for i in range(count)]


def _by_onednn(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies tokens in a dtype, and computes GELU in the same pass."""
    if dtype == torch.bfloat16:
        return operators.HAS_LINEAR_GELU and operators.runs_on_onednn(x.device, dtype)
    return dtype == x.dtype and operators.multiplies_by_onednn(x)


class _Scratch(threading.local):
    """Scratch buffer of each thread, reused across calls because large allocations are slow."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def borrow(self, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
        """Return uninitialized memory on the device of a tensor."""
        if like.device.type != 'cpu':
            return like.new_empty(shape, dtype=dtype)
        num_bytes = prod(shape) * dtype.itemsize
        if len(self._memory) < num_bytes:
            with torch.inference_mode(False):  # or it could not be written to outside of that mode
                self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory[:num_bytes].view(dtype).view(shape)


_scratch = _Scratch()


def _forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    dtype: torch.dtype,
    save_hidden: bool,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the branch in a dtype; also returns `fc1`'s output (R, D) if `save_hidden`."""
    saved = x.new_empty(x.shape[:-1].numel() if save_hidden else 0, len(weight1), dtype=dtype)
    weight1, bias1, weight2, bias2 = (t.to(dtype) for t in (weight1, bias1, weight2, bias2))
    rows = x.flatten(0, -2)  # (R, C)
    # A fresh tensor, not a view of a matrix, so that the caller may add to it in place.
    out = x.new_empty(x.shape, dtype=x.dtype if residual else dtype)
    sizes = chunk_sizes(rows, len(weight1), dtype)
    by_onednn = _by_onednn(x, dtype)
    # Where MKL multiplies, GELU on a chunk in the cache is as fast as in the product.
    fuses_gelu = by_onednn and not save_hidden
    adds_in_place = x.dtype == dtype and dtype.itemsize >= 4 and not by_onednn
    buffer = _scratch.borrow((0 if fuses_gelu else max(sizes), len(weight1)), dtype, x)
    saved_chunks = saved.split(sizes) if save_hidden else [None] * len(sizes)
    chunks = zip(rows.split(sizes), out.view(rows.shape).split(sizes), saved_chunks, strict=True)
    with without_autocast(x.device):
        for chunk, out_chunk, saved_chunk in chunks:
            normalized = F.layer_norm(chunk, chunk.shape[1:], norm_weight, norm_bias, eps).to(dtype)
            if fuses_gelu:
                hidden = operators.linear_gelu(normalized, weight1, bias1)
            else:
                hidden = buffer[: len(normalized)]  # (rows of the chunk, D)
                before_gelu = hidden if saved_chunk is None else saved_chunk
                before_gelu.copy_(operators.linear(normalized, weight1, bias1, scratch=before_gelu))
                operators.gelu(before_gelu, out=hidden)
            del normalized  # the products below allocate
            if not residual:
                out_chunk.copy_(operators.linear(hidden, weight2, bias2, scratch=out_chunk))
            elif adds_in_place:
                # One pass less. In half precision, rounding x + bias would cost accuracy.
                torch.add(chunk, bias2, out=out_chunk).addmm_(hidden, weight2.t())
            else:
                branch = operators.linear(hidden, weight2, bias2)
                del hidden  # the addition allocates
                torch.add(chunk, branch, out=out_chunk)
    return out, saved


def _backward(
    grad: Tensor,
    x: Tensor,
    saved: Tensor,
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
    """Compute the gradients of the branch's seven tensors, empty ones for those not needed."""
    need_x, need_norm_weight, need_norm_bias, *need_linear = needed
    need_weight1, need_bias1, need_weight2, need_bias2 = need_linear
    rows = x.flatten(0, -2)
    grad_rows = grad.reshape(rows.shape).to(dtype)
    param_dtype = weight1.dtype
    grad_weight1 = grad_bias1 = grad_weight2 = None
    grad_bias2 = grad_rows.sum(0).to(weight2.dtype) if need_bias2 else None
    weight1, bias1, weight2 = weight1.to(dtype), bias1.to(dtype), weight2.to(dtype)
    sizes = chunk_sizes(rows, len(weight1), dtype)
    buffers = _scratch.borrow((2, max(sizes), len(weight1)), dtype, x)
    normalized, mean, rstd = operators.layer_norm(rows, norm_weight, norm_bias, eps)
    grad_normalized = torch.empty_like(rows, dtype=dtype)
    saved_chunks = saved.split(sizes) if len(saved) else [None] * len(sizes)
    for normalized_chunk, grad_chunk, grad_normalized_chunk, before_gelu in zip(
        normalized.split(sizes),
        grad_rows.split(sizes),
        grad_normalized.split(sizes),
        saved_chunks,
        strict=True,
    ):
        normalized_chunk = normalized_chunk.to(dtype)
        hidden, grad_hidden = buffers[:, : len(normalized_chunk)]  # (rows of the chunk, D) each
        if before_gelu is None:
            before_gelu = hidden = operators.linear(
                normalized_chunk, weight1, bias1, scratch=hidden
            )
        grad_hidden = operators.linear(grad_chunk, weight2.t(), scratch=grad_hidden)
        operators.gelu_backward_(grad_hidden, before_gelu)
        grad_normalized_chunk.copy_(
            operators.linear(grad_hidden, weight1.t(), scratch=grad_normalized_chunk)
        )
        if need_weight2:
            operators.gelu(before_gelu, out=hidden)
            part = operators.weight_gradient(grad_chunk, hidden)
            grad_weight2 = _accumulate(grad_weight2, part, param_dtype)
        if need_weight1:
            part = operators.weight_gradient(grad_hidden, normalized_chunk)
            grad_weight1 = _accumulate(grad_weight1, part, param_dtype)
        if need_bias1:
            grad_bias1 = _accumulate(grad_bias1, grad_hidden.sum(0), param_dtype)
    del normalized
    if grad_weight1 is not None:
        grad_weight1 = grad_weight1.contiguous()
    norm_needed = (need_x, need_norm_weight, need_norm_bias)
    grad_x, *norm_grads = operators.layer_norm_backward(
        grad_normalized.to(rows.dtype), rows, mean, rstd, norm_weight, norm_bias, norm_needed
    )
    if need_x:
        grad_x = grad_x.view(x.shape)
        if residual:
            grad_x += grad
    grads = [grad_x, *norm_grads, grad_weight1, grad_bias1, grad_weight2, grad_bias2]
    return [x.new_empty(0) if t is None else t for t in grads]


def _accumulate(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    """Add a part to a sum in a dtype; the first part starts the sum."""
    return part.to(dtype) if total is None else total.add_(part)


def _fake_forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return empty results of `_forward`, for a compiler."""
    weight1, dtype, save_hidden, residual = args[3], *args[7:]
    num_saved = x.shape[:-1].numel() if save_hidden else 0
    out = x.new_empty(x.shape, dtype=x.dtype if residual else dtype)
    return out, x.new_empty(num_saved, len(weight1), dtype=dtype)


def _fake_backward(grad: Tensor, x: Tensor, saved: Tensor, *args: Any) -> list[Tensor]:
    """Return empty results of `_backward`, for a compiler."""
    norm_weight, norm_bias, _, weight1, bias1, weight2, _, _, needed = args
    shapes = [t if t is None else t.shape for t in (x, norm_weight, norm_bias, weight1, bias1)]
    shapes += [weight2.shape, weight2.shape[:1]]
    return [
        weight1.new_empty(shape if need and shape is not None else 0, dtype=dtype)
        for shape, need, dtype in zip(shapes, needed, [x.dtype] + [weight1.dtype] * 6, strict=True)
    ]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, norm_weight, norm_bias, ctx.eps, weight1, bias1, weight2, _, *options = inputs
    ctx.dtype, _, ctx.residual = options
    ctx.save_for_backward(x, output[1], norm_weight, norm_bias, weight1, bias1, weight2)
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative()
    x, saved, norm_weight, norm_bias, *weights = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i, kind in enumerate(_INPUTS) if kind == 'tensor']
    grads = iter(
        norm_mlp_backward(
            grad,
            x,
            saved,
            norm_weight,
            norm_bias,
            ctx.eps,
            *weights,
            ctx.dtype,
            ctx.residual,
            needed,
        )
    )
    gradients = [next(grads) if kind == 'tensor' else None for kind in _INPUTS]
    return tuple(
        grad if need else None for grad, need in zip(gradients, ctx.needs_input_grad, strict=True)
    )


# Kind of each argument of `_forward`; the tensors have gradients.
_INPUTS = (*['tensor'] * 3, 'eps', *['tensor'] * 4, 'dtype', 'save_hidden', 'residual')


if operators.HAS_CUSTOM_OPS:
    norm_mlp = torch.library.custom_op('mmvit_backbones::norm_mlp', mutates_args=())(_forward)
    norm_mlp.register_fake(_fake_forward)
    norm_mlp.register_autograd(_run_backward, setup_context=_save_for_backward)
    norm_mlp_backward = torch.library.custom_op(
        'mmvit_backbones::norm_mlp_backward', mutates_args=()
    )(_backward)
    norm_mlp_backward.register_fake(_fake_backward)
