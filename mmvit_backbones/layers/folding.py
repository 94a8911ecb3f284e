"""Folding of constant factors into the weights of a neighbouring layer, for inference.

A layer that is not the plain PyTorch class, or that has hooks or adapters, is left as it is.

Legend: C channels in, D channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmvit_backbones.layers.plain import is_plain

Scale = Tensor | float  # LayerScale (C); 1.0 once it is folded


@torch.no_grad()
def fold_norm(norm: nn.Module, *layers: nn.Module) -> None:
    """Move the affine part of a LayerNorm into all the linear layers that read its output."""
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return  # not a LayerNorm with both, or folded before
    if not is_plain(norm) or not all(isinstance(layer, nn.Linear) for layer in layers):
        return
    if not all(map(is_plain, layers)):
        return
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        shift = layer.weight @ norm.bias
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift, False)
        layer.weight.mul_(norm.weight)
    norm.register_parameter('weight', None)
    norm.register_parameter('bias', None)


@torch.no_grad()
def fold_scale(layer: nn.Module, scale: Scale) -> Scale:
    """Move a factor of each output channel into a linear layer or convolution.

    Returns:
        The factor that is left: 1.0, or `scale` if the layer was left as it is.
    """
    if not isinstance(scale, Tensor) or not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return scale
    if not is_plain(layer):
        return scale
    weight, bias = scaled_parameters(layer, scale)
    layer.weight = nn.Parameter(weight, False)
    layer.bias = None if bias is None else nn.Parameter(bias, False)
    return 1.0


def scaled_parameters(layer: nn.Linear | nn.Conv2d, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of a layer times a factor of each output channel (D)."""
    weight = scale.view(-1, *[1] * (layer.weight.ndim - 1)) * layer.weight
    return weight, None if layer.bias is None else scale * layer.bias


def fold_batch_norm(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a convolution that does the work of the BatchNorm after it too, and an identity.

    Both modules are returned as they are if they are not a plain convolution and BatchNorm.
    """
    is_transposed = type(conv) is nn.ConvTranspose2d
    if type(norm) is not nn.BatchNorm2d or not (type(conv) is nn.Conv2d or is_transposed):
        return conv, norm
    if not is_plain(conv) or not is_plain(norm) or norm.running_mean is None:
        return conv, norm
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
    return fuse_conv_bn_eval(conv, norm, transpose=is_transposed), nn.Identity()


def fold_batch_norms(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm of a sequence into the convolution directly before it."""
    for i in range(len(sequence) - 1):
        sequence[i], sequence[i + 1] = fold_batch_norm(sequence[i], sequence[i + 1])
