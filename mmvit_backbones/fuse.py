"""Models for inference, with everything folded that is constant by then."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmvit_backbones.backbones.twins_svt import TwinsSVTBlock
from mmvit_backbones.backbones.xcit import XCiTBlock
from mmvit_backbones.layers.class_attention import ClassAttentionBlock
from mmvit_backbones.layers.layer_scale import fold_scale
from mmvit_backbones.layers.local_patch_interaction import LocalPatchInteraction
from mmvit_backbones.layers.packed_linear import PackedLinear
from mmvit_backbones.layers.subsampled_attention import SubsampledAttention
from mmvit_backbones.layers.window_attention import WindowAttention

Model = TypeVar('Model', bound=nn.Module)


@torch.no_grad()
def fuse(model: Model) -> Model:
    """Return a copy of a model for inference, which computes the same with fewer steps.

    Folded are LayerScale into the last layer of its branch, the affine part of norms into the
    linear layers that alone follow, and BatchNorm into the convolution before it. Left as they are:
    norms whose output is padded with zeros on its way (a shift would become visible at the border),
    and the scale of queries, which PyTorch's attention applies at no cost. On a CPU, linear layers
    keep a second copy of their weights, in the order in which products read them. The model can't
    be trained, and its state dict does not fit the original.

    Args:
        model: A backbone, a classifier, or any model that holds one.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fused.modules()):
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
        elif isinstance(module, TwinsSVTBlock):
            _fold_norm(module.norm2, module.mlp.fc1)
            _fold_attention_norm(module)
            _pack_linear(module.mlp)
            _pack_linear(module.attn)
        elif isinstance(module, XCiTBlock):
            _fold_norm(module.norm1, module.attn.qkv)
            _fold_norm(module.norm2, module.mlp.fc1)
            _fold_layer_scale(module, 'gamma1', module.attn.proj)
            _fold_layer_scale(module, 'gamma2', module.mlp.fc2)
            _fold_layer_scale(module, 'gamma3', module.local_mp.conv2)
            _pack_linear(module.mlp)
        elif isinstance(module, ClassAttentionBlock):
            _fold_layer_scale(module, 'gamma2', module.mlp.fc2)
        elif isinstance(module, LocalPatchInteraction):
            _fold_local_norm(module)
    return fused


def _fold_attention_norm(block: TwinsSVTBlock) -> None:
    attn = block.attn
    if isinstance(attn, WindowAttention) and attn.padding == 'mask':
        _fold_norm(block.norm1, attn.qkv)
    elif isinstance(attn, SubsampledAttention) and attn.sr is None and not attn.fused_reduction:
        _fold_norm(block.norm1, attn.q, attn.kv)


def _fold_local_norm(local: LocalPatchInteraction) -> None:
    if local.norm_first and isinstance(local.bn, nn.BatchNorm2d):
        local.conv1 = fuse_conv_bn_eval(local.conv1, local.bn)
        local.bn = nn.Identity()


def _fold_norm(norm: nn.LayerNorm, *layers: nn.Module) -> None:
    """Move a norm's factors and shifts into all the layers that read its output."""
    if norm.weight is None:  # fused before
        return
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        shift = layer.weight @ norm.bias
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift, False)
        layer.weight.mul_(norm.weight)
    norm.register_parameter('weight', None)
    norm.register_parameter('bias', None)


def _pack_linear(module: nn.Module) -> None:
    """Give the linear layers that a module calls weights in oneDNN's order, too."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))


def _fold_layer_scale(block: nn.Module, name: str, layer: nn.Linear | nn.Conv2d) -> None:
    weight, bias = fold_scale(layer, getattr(block, name))
    layer.weight = nn.Parameter(weight, False)
    layer.bias = nn.Parameter(bias, False)
    block.register_parameter(name, None)


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    """Fold each BatchNorm that follows a convolution directly."""
    for i in range(len(sequence) - 1):
        conv, norm = sequence[i], sequence[i + 1]
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
            is_transposed = isinstance(conv, nn.ConvTranspose2d)
            sequence[i] = fuse_conv_bn_eval(conv, norm, transpose=is_transposed)
            sequence[i + 1] = nn.Identity()
