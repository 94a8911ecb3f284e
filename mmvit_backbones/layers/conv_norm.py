"""Convolution, norm and GELU in as few passes over the map as possible.

Legend: B batch, C channels, H x W tokens or pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvit_backbones.layers.lean import is_traced
from mmvit_backbones.layers.precision import (
    at_least_float32,
    can_use_onednn,
    compute_dtype,
    without_autocast,
)


def conv_norm(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module | None = None, activate: bool = False
) -> Tensor:
    """Convolve, norm and optionally activate a map.

    A BatchNorm that uses its running statistics is put into the weights, which costs nothing
    beside the map; gradients flow through that. Without gradients the activation is part of the
    convolution where oneDNN runs it.

    Args:
        x: Map (B, C, H, W).
        conv: Convolution with zero padding.
        norm: Norm of the convolution's output.
        activate: End with GELU.
    """
    weight, bias = conv.weight, conv.bias
    if isinstance(norm, _BatchNorm) and _is_constant(norm):
        weight, bias = _fold(norm, weight, bias)
        norm = None
    if isinstance(norm, nn.Identity):  # folded already, by `fuse`
        norm = None
    if norm is None and activate and not torch.is_grad_enabled() and not is_traced():
        dtype = compute_dtype(x)
        if can_use_onednn(x.device, dtype):
            with without_autocast(x.device):
                return torch.ops.mkldnn._convolution_pointwise(
                    x.to(dtype),
                    weight.to(dtype),
                    None if bias is None else bias.to(dtype),
                    conv.padding,
                    conv.stride,
                    conv.dilation,
                    conv.groups,
                    'gelu',
                    [],
                    'none',
                )
    x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if norm is not None:
        x = norm(x)
    return F.gelu(x) if activate else x


def _is_constant(norm: _BatchNorm) -> bool:
    """Whether a BatchNorm does the same to every map: it is in evaluation mode."""
    return not norm.training and norm.running_mean is not None


def _fold(norm: _BatchNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution that does the norm's work too.

    Unlike those of `torch.nn.utils.fusion`, they carry gradients.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (at_least_float32(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    dtype = weight.dtype
    return (weight * scale.view(-1, 1, 1, 1)).to(dtype), shift.to(dtype)
