"""The operators of PyTorch (`torch.ops`) that are private or recent, for all kernels.

An operator that this PyTorch lacks switches off the kernels that need it.

Legend: N tokens, C channels in, D channels out.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')  # since 2.4
HAS_CONV_GELU = hasattr(torch.ops.mkldnn, '_convolution_pointwise')
HAS_LINEAR_GELU = hasattr(torch.ops.mkldnn, '_linear_pointwise')


def _is_intel() -> bool:
    try:
        return 'GenuineIntel' in Path('/proc/cpuinfo').read_text()
    except OSError:
        return 'GenuineIntel' in platform.processor()


# MKL, which PyTorch calls for products in fp32, uses AVX-512 only on Intel processors. oneDNN uses
# it on all: on an AMD EPYC with AVX-512 its products take half the time of MKL's.
FP32_BY_ONEDNN = (
    HAS_LINEAR_GELU
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == 'AVX512'
    and not _is_intel()
)
ROWS = 1024  # of tokens whose product is held before it is added


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available():
        return ()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # older processors refuse it
        return torch.float32, torch.bfloat16
    return (torch.float32,)


ONEDNN_DTYPES = _onednn_dtypes()  # asked once: Dynamo cannot trace the question


def runs_on_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators take tensors of a dtype on a device."""
    return device.type == 'cpu' and dtype in ONEDNN_DTYPES


def conv_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """Return the GELU of a convolution in one pass over the feature map (B, C, H, W)."""
    return torch.ops.mkldnn._convolution_pointwise(
        x,
        weight,
        bias,
        conv.padding,
        conv.stride,
        conv.dilation,
        conv.groups,
        'gelu',
        [],
        'none',
    )


def multiplies_by_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies a tensor faster than what PyTorch calls by default."""
    return FP32_BY_ONEDNN and x.dtype == torch.float32 and x.device.type == 'cpu' and x.numel() > 0


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """Return `x W^T + b` by the faster library; autograd does not record it.

    Args:
        x: Tokens (N, C).
        weight: (D, C).
        bias: (D).
        scratch: (N, D) of memory for the result. oneDNN allocates its own.
    """
    if multiplies_by_onednn(x):
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # else oneDNN's product is a hundred times slower
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, 'none', [], '')
    if bias is None:
        return torch.mm(x, weight.t(), out=scratch)
    return torch.addmm(bias, x, weight.t(), out=scratch)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """Return `a b` as `torch.mm` does, by the faster library; autograd does not record it."""
    return linear(a, b.t())


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return `grad^T x`, the gradient of a linear layer's weight, by the faster library.

    Args:
        grad: Gradient of the output (N, D).
        x: Input (N, C).

    Returns:
        (D, C), maybe as a transposed view.
    """
    num_tokens, out_dims, dims = *grad.shape, x.shape[1]
    # oneDNN copies a transposed input. Transposing `x` copies fewer values than transposing `grad`,
    # but then the result has to be transposed as well.
    if multiplies_by_onednn(x) and num_tokens * (out_dims - dims) > out_dims * dims:
        return mm(x.t(), grad).t()
    return mm(grad.t(), x)


def addmm(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return `x + a b` as `torch.addmm` does, by the faster library; not recorded either."""
    return mm(a, b).add_(x) if multiplies_by_onednn(a) else torch.addmm(x, a, b)


def transposed_bmm(a: Tensor, b: Tensor) -> Tensor:
    """Return `a^T b` (B, C, D) of a (B, N, C) and b (B, N, D); autograd does not record it."""
    if not multiplies_by_onednn(a):
        return a.transpose(1, 2) @ b
    return torch.stack([mm(x.t(), y) for x, y in zip(a, b, strict=True)])


def add_linear_(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add `x W^T` to `out` (B, N, D) in place, with a weight (B, D, C) of each image (B, N, C)."""
    if not multiplies_by_onednn(x):
        return torch.baddbmm(out, x, weight.transpose(1, 2), out=out)
    for out_image, x_image, weight_image in zip(out, x, weight.contiguous(), strict=True):
        for out_rows, rows in zip(out_image.split(ROWS), x_image.split(ROWS), strict=True):
            out_rows += linear(rows, weight_image)
    return out


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the GELU of a linear layer of tokens (N, C) in one pass over its output."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'gelu', [], 'none')


def gelu(x: Tensor, out: Tensor) -> None:
    """Write the GELU of `x` to `out`."""
    torch.ops.aten.gelu.out(x, out=out)


def gelu_backward_(grad: Tensor, x: Tensor) -> None:
    """Multiply `grad` by the derivative of GELU at `x`, in place."""
    torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the LayerNorm of tokens (..., C), their mean and one over their deviation."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needed: Sequence[bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `x`, `weight` and `bias`, as far as they are there and needed."""
    needed = [n and t is not None for n, t in zip(needed, (x, weight, bias), strict=True)]
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, needed
    )


def batch_norm(
    x: Tensor, norm: nn.BatchNorm2d, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize (B, C, H, W) by BatchNorm, and update its running statistics in training.

    Returns:
        The map, and the mean and one over the deviation (C) that it was normalized by.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    out, *found = torch.native_batch_norm(
        x, weight, bias, mean, var, norm.training, norm.momentum or 0.0, norm.eps
    )
    if not norm.training:
        found = [mean.clone(), (var + norm.eps).rsqrt()]
    return out, found[0], found[1]


def apply_batch_norm(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return what `batch_norm` returned, from the statistics that it returned."""
    factor = rstd if weight is None else rstd * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    factor, shift = (t.to(x.dtype).view(-1, 1, 1) for t in (factor, shift))
    return torch.addcmul(shift, x, factor)


def batch_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `batch_norm`'s input, weight and bias.

    Args:
        grad: Gradient of its output.
        x: Its input.
        mean: The mean that it returned.
        rstd: One over the deviation that it returned.
        weight: Its weight.
        training: Whether mean and deviation were those of `x`.
    """
    # The operator takes a variance in evaluation; with no eps, this one gives the same deviation.
    return torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, mean, rstd**-2, mean, rstd, training, 0.0, [True, True, True]
    )


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, conv: nn.Conv2d
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, the latter in its dtype."""
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight.to(x.dtype),
        [len(weight)] if has_bias else None,
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0, 0],
        conv.groups,
        [True, True, has_bias],
    )
    grad_bias = grad_bias.to(weight.dtype) if has_bias else None
    return grad_x, grad_weight.to(weight.dtype), grad_bias
