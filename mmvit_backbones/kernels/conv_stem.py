"""XCiT's convolutional stem in fewer passes over the feature map, without gradients.

- Feature maps are in channels_last format, so that tokens are views of them.
- A BatchNorm that uses its running statistics is folded into the convolution before it.
- The GELU runs inside the convolution, where oneDNN computes it.

Legend: B batch, C channels, H x W = N tokens or pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmvit_backbones.kernels.autograd import compute_dtype
from mmvit_backbones.kernels.expected import why_other_class, why_other_padding
from mmvit_backbones.kernels.operators import HAS_CONV_GELU, conv_gelu, runs_on_onednn
from mmvit_backbones.layers.conv_stem import ConvStem
from mmvit_backbones.layers.precision import at_least_float32, without_autocast
from mmvit_backbones.layers.tokens import Size, to_tokens


def refusal(mode: str, stem: ConvStem, x: Tensor) -> str | None:
    """Return why the kernel does not serve a stem; None if it does."""
    layers = list(stem.proj)
    reason = why_other_class(nn.Sequential, *layers[::2]) or why_other_class(nn.GELU, *layers[1::2])
    return reason or why_other_class(nn.Conv2d, *(next(layer.children()) for layer in layers[::2]))


def run(mode: str, stem: ConvStem, x: Tensor) -> tuple[Tensor, Size]:
    """Compute the forward of `ConvStem`."""
    x = x.contiguous(memory_format=torch.channels_last)
    pairs = [layer for layer in stem.proj if isinstance(layer, nn.Sequential)]
    for i, (conv, norm) in enumerate(pairs):
        x = _conv_norm(x, conv, norm, activate=i < len(pairs) - 1)
    return to_tokens(x), (x.shape[2], x.shape[3])


def _conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module | None, activate: bool) -> Tensor:
    """Convolve, normalize and optionally activate a feature map (B, C, H, W)."""
    assert isinstance(conv, nn.Conv2d)
    weight, bias = conv.weight, conv.bias
    if isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None:
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            weight.detach(),  # autocast would keep its copy of a new parameter
            bias,
            at_least_float32(norm.running_mean),
            at_least_float32(norm.running_var),
            norm.eps,
            norm.weight,
            norm.bias,
        )
        norm = None
    if isinstance(norm, nn.Identity):  # folded by `fuse`
        norm = None
    dtype = compute_dtype(x)
    fuses_gelu = (
        activate
        and norm is None
        and HAS_CONV_GELU
        and not why_other_padding(conv)
        and runs_on_onednn(x.device, dtype)
    )
    if fuses_gelu:
        with without_autocast(x.device):
            bias = None if bias is None else bias.to(dtype)
            return conv_gelu(x.to(dtype), weight.to(dtype), bias, conv)
    x = conv._conv_forward(x, weight, bias)
    x = x if norm is None else norm(x)
    return F.gelu(x) if activate else x
