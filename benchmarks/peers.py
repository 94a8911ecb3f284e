"""Who has which network: one function a package, from a name of ours to a model of maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmvit_backbones.backbones import TwinsSVT, XCiT
from mmvit_backbones.models import create_model

OURS = 'ours'


class _Maps(nn.Module):
    """A peer with an extraction call of its own, as a module from images to maps."""

    def __init__(self, model: nn.Module, extract: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.extract = extract

    def forward(self, x: Tensor) -> Any:
        return self.extract(self.model, x)


def _ours(network: str, **settings: Any) -> nn.Module:
    if network.startswith('xcit'):  # peers have no pyramid; without it the same maps are compared
        settings['pyramid'] = False
    return create_model(network, **settings)


def sizes_of(network: str) -> TwinsSVT | XCiT:
    """Return our backbone without memory for its weights."""
    with torch.device('meta'):
        model = _ours(network)
    assert isinstance(model, (TwinsSVT, XCiT))
    return model


def _timm_settings(network: str) -> tuple[str, list[int]]:
    name = f'{network}_224' if network.startswith('xcit') else network
    return name, list(sizes_of(network).out_indices)


def _timm(network: str) -> nn.Module:
    import timm

    name, indices = _timm_settings(network)

    def extract(peer: Any, x: Tensor) -> Any:
        return peer.forward_intermediates(x, indices=indices, intermediates_only=True)

    return _Maps(timm.create_model(name, num_classes=0), extract)


def _mmpretrain_timm(network: str) -> nn.Module:
    from mmpretrain.registry import MODELS

    name, indices = _timm_settings(network)
    wrapper = dict(type='mmpretrain.TIMMBackbone', features_only=True)
    return MODELS.build(dict(wrapper, model_name=name, out_indices=tuple(indices)))


def _mmpretrain(network: str) -> nn.Module:
    from mmpretrain.registry import MODELS

    ours = sizes_of(network)
    if isinstance(ours, TwinsSVT):
        settings: dict[str, Any] = dict(qkv_bias=True, out_indices=ours.out_indices)
        settings |= dict(arch=network.removeprefix('twins_svt_'))
        return MODELS.build(dict(type='mmpretrain.SVT', **settings))
    arch = ours.arch
    sizes: dict[str, Any] = dict(depth=arch.depth, num_heads=arch.num_heads)
    sizes |= dict(embed_dims=arch.embed_dims, patch_size=ours.out_strides[0], mlp_ratio=4)
    sizes |= dict(layer_scale_init_value=arch.layer_scale, qkv_bias=True)
    sizes |= dict(tokens_norm=arch.tokens_norm)
    outputs = dict(out_type='featmap', out_indices=ours.out_indices)
    return MODELS.build(dict(type='mmpretrain.XCiT', **sizes, **outputs))


def _mmseg(network: str) -> nn.Module:
    from mmseg.registry import MODELS

    ours = sizes_of(network)
    assert isinstance(ours, TwinsSVT)
    arch = ours.arch
    sizes = dict(embed_dims=list(arch.embed_dims), num_heads=list(arch.num_heads))
    sizes |= dict(mlp_ratios=[arch.mlp_ratio] * 4, sr_ratios=list(arch.sr_ratios))
    sizes |= dict(depths=[len(stage) for stage in arch.stages])
    sizes |= dict(windiow_sizes=[arch.window_size] * 4)  # sic
    settings = dict(qkv_bias=True, out_indices=(0, 1, 2, 3), norm_after_stage=True)
    return MODELS.build(dict(type='mmseg.SVT', **sizes, **settings))


def _vit_pytorch(network: str) -> nn.Module:
    from vit_pytorch.twins_svt import TwinsSVT as Peer

    def extract(peer: Any, x: Tensor) -> Any:
        maps = []
        for stage in peer.layers[:4]:
            x = stage(x)
            maps.append(x)
        return maps

    return _Maps(Peer(num_classes=1), extract)


SUBJECTS = {
    OURS: _ours,
    'timm': _timm,
    'mmpretrain': _mmpretrain,
    'mmpretrain.TIMMBackbone': _mmpretrain_timm,
    'mmseg': _mmseg,
    'vit-pytorch': _vit_pytorch,
}


def subjects(network: str) -> dict[str, Callable[..., nn.Module]]:
    """Return who has a network of this structure: subject -> function that builds it from the name.

    Ours takes keywords of the backbone too.
    """
    if network == 'twins_svt_vit_pytorch':
        names = {OURS, 'vit-pytorch'}
    elif network == 'xcit_vit_pytorch':  # that package's own serves one square size only
        names = {OURS}
    else:
        names = SUBJECTS.keys() - {
            'vit-pytorch',
            *([] if network.startswith('twins') else ['mmseg']),
        }
    return {name: build for name, build in SUBJECTS.items() if name in names}
