"""PyTorch operators outside its public interface, and newer ones; kernels reach them here alone.

An operator that this PyTorch lacks switches off the kernels that need it.

Legend: N tokens, C channels in, D channels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')  # since 2.4
HAS_CONV_GELU = hasattr(torch.ops.mkldnn, '_convolution_pointwise')
HAS_LINEAR_GELU = hasattr(torch.ops.mkldnn, '_linear_pointwise')


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
