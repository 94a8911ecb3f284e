"""Small models that together hold every kind of layer of the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmvit_backbones import TwinsSVT, XCiT
from mmvit_backbones.models import Classifier
from mmvit_backbones.necks import ClassAttentionPooling, NormAveragePooling

TWINS = dict(
    embed_dims=(8, 12, 16, 20),
    stages=('LG', 'LG', 'LG', 'LG'),
    num_heads=(1, 2, 2, 4),
    head_dims=8,
)
TWINS_VIT_PYTORCH = dict(TWINS, variant='vit-pytorch', peg_after=(1, 1, 0, 0))
XCIT = dict(embed_dims=16, depth=5, num_heads=2, layer_scale=1.0)
XCIT_VIT_PYTORCH = dict(
    variant='vit-pytorch',
    embed_dims=16,
    depth=5,
    num_heads=2,
    head_dims=12,
    mlp_dims=24,
    grid_size=(4, 6),
)
# Two stages and a single block: still every kind of layer.
SMALL_TWINS = dict(
    embed_dims=(8, 12), stages=('LG', 'LG'), num_heads=(1, 2), head_dims=8, sr_ratios=(4, 1)
)
SMALL_TWINS.update(patch_sizes=(4, 2), peg_after=(0, 0))


def twins_classifier(arch: dict) -> Classifier:
    """Build a Twins-SVT with average pooling and 7 classes."""
    stages = len(arch['stages'])
    backbone = TwinsSVT(arch, out_indices=(stages - 1,), out_norm=False)
    neck = NormAveragePooling(
        backbone.out_channels[-1], norm=backbone.arch.is_paper, norm_eps=backbone.arch.norm_eps
    )
    return Classifier(backbone, neck, 7)


def xcit_classifier(arch: dict, depth: int = 2) -> Classifier:
    """Build an XCiT with class attention and 7 classes."""
    backbone = XCiT(dict(arch, depth=depth), out_indices=(depth - 1,), pyramid=False)
    return Classifier(backbone, ClassAttentionPooling(**backbone.arch.class_attention), 7)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    'twins': lambda **kwargs: TwinsSVT(TWINS, **kwargs),
    'twins-zero': lambda **kwargs: TwinsSVT(TWINS, window_padding='zero', **kwargs),
    'twins-vit-pytorch': lambda **kwargs: TwinsSVT(TWINS_VIT_PYTORCH, **kwargs),
    'xcit-16': lambda **kwargs: XCiT(XCIT, **kwargs),
    'xcit-8': lambda **kwargs: XCiT(XCIT, 8, **kwargs),
    'xcit-vit-pytorch': lambda **kwargs: XCiT(XCIT_VIT_PYTORCH, **kwargs),
}
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    'twins-classifier': lambda: twins_classifier(TWINS),
    'twins-vit-pytorch-classifier': lambda: twins_classifier(TWINS_VIT_PYTORCH),
    'xcit-classifier': lambda: xcit_classifier(XCIT),
    'xcit-vit-pytorch-classifier': lambda: xcit_classifier(XCIT_VIT_PYTORCH),
}
MODELS = {**BACKBONES, **CLASSIFIERS}
# For what is slow: the smallest that have every kind of layer of their network.
SMALL: dict[str, Callable[..., nn.Module]] = {
    'twins': lambda **kwargs: TwinsSVT(SMALL_TWINS, out_indices=(0, 1), **kwargs),
    'twins-zero': lambda **kwargs: TwinsSVT(
        SMALL_TWINS, out_indices=(0, 1), window_padding='zero', **kwargs
    ),
    'twins-vit-pytorch': lambda **kwargs: TwinsSVT(
        dict(SMALL_TWINS, variant='vit-pytorch'), out_indices=(0, 1), **kwargs
    ),
    'xcit': lambda **kwargs: XCiT(
        dict(XCIT, depth=1), 8, out_indices=(0,), pyramid=False, **kwargs
    ),
    'xcit-vit-pytorch': lambda **kwargs: XCiT(
        dict(XCIT_VIT_PYTORCH, depth=1), 8, out_indices=(0,), pyramid=False, **kwargs
    ),
}
SMALL_CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    'twins-classifier': lambda: twins_classifier(SMALL_TWINS),
    'xcit-classifier': lambda: xcit_classifier(XCIT, depth=1),
}

EVERY_BACKBONE = pytest.mark.parametrize('name', BACKBONES)
EVERY_MODEL = pytest.mark.parametrize('name', MODELS)
EVERY_SMALL = pytest.mark.parametrize('name', SMALL)
BOTH_NETWORKS = pytest.mark.parametrize('name', ['twins', 'xcit'])
BOTH_MODES = pytest.mark.parametrize('mode', ['auto', 'reference'])


def images(*size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=dtype)
