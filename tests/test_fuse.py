"""Fused copies compute the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmvit_backbones import TwinsSVT, XCiT, fuse
from mmvit_backbones.factory import Classifier
from mmvit_backbones.layers.packed_linear import PackedLinear
from mmvit_backbones.necks import ClassAttentionPooling
from tests.utils import max_error, randomize

TWINS = dict(
    embed_dims=(8, 12, 16, 20),
    stages=('LG', 'LG', 'LG', 'LG'),
    num_heads=(1, 2, 2, 4),
    head_dims=8,
)
XCIT = dict(embed_dims=32, depth=5, num_heads=4, layer_scale=1.0)
VIT_PYTORCH = dict(XCIT, variant='vit-pytorch', grid_size=(4, 6), layer_scale=None)


def make_classifier() -> Classifier:
    backbone = XCiT(XCIT, out_indices=(4,), pyramid=False)
    return Classifier(backbone, ClassAttentionPooling(**backbone.arch.class_attention), 7)


MODELS = {
    'twins': lambda: TwinsSVT(TWINS),
    'twins-zero': lambda: TwinsSVT(TWINS, window_padding='zero'),
    'twins-vit-pytorch': lambda: TwinsSVT(
        dict(TWINS, variant='vit-pytorch')
    ),
    'xcit-16': lambda: XCiT(XCIT),
    'xcit-8': lambda: XCiT(XCIT, patch_size=8),
    'xcit-gn': lambda: XCiT(XCIT, norm_cfg=dict(type='GN', num_groups=4)),
    'xcit-vit-pytorch': lambda: XCiT(VIT_PYTORCH),
    'classifier': make_classifier,
}


@pytest.mark.parametrize('name', MODELS)
def test_fused_copy_computes_the_same(name: str) -> None:
    model = randomize(MODELS[name]()).eval()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    for size in [(64, 96), (75, 131)]:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, outputs = model(x), fused(x)
        if isinstance(expected, torch.Tensor):
            expected, outputs = (expected,), (outputs,)
        for ours, reference in zip(outputs, expected, strict=True):
            assert max_error(ours, reference) <= 1e-5 * float(reference.abs().max())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(p.requires_grad for p in fused.parameters())
    with torch.no_grad():
        again = fuse(fused)(x)
    again = (again,) if isinstance(again, torch.Tensor) else again
    for twice, once in zip(again, outputs, strict=True):
        assert torch.equal(twice, once)


def test_what_is_folded() -> None:
    fused = fuse(XCiT(XCIT))
    assert not any('gamma' in key for key in fused.state_dict())
    # What is left are the norms between activation and convolution, whose shift meets padding.
    kept = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(kept) == 5


@pytest.mark.parametrize('name', ['twins', 'xcit-16'])
def test_packed_weights_are_used(name: str) -> None:
    fused = fuse(MODELS[name]())
    packed = [m for m in fused.modules() if isinstance(m, PackedLinear)]
    assert packed
    with torch.no_grad():
        fused(torch.randn(1, 3, 64, 96))
    assert all(module._packed for module in packed)
