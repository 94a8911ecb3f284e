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


def runs_on_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators take tensors of a dtype on a device."""
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:  # older processors refuse it
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


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
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `x`, `weight` and `bias`, as far as they are needed."""
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, list(needed)
    )
