"""The same scales for the same parameters in every toolkit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmvit_backbones import TwinsSVT, create_model
from mmvit_backbones.engine import LayerDecayOptimWrapperConstructor, layer_decay

RATE = 0.5
# Parameter -> steps of decay below the head and whether it has weight decay.
# Twins-SVT-S has 2 + 2 + 10 + 4 = 18 blocks, XCiT-S12 has 12.
TWINS_TABLE = {
    'patch_embeds.0.proj.weight': (19, True),
    'patch_embeds.0.proj.bias': (19, False),
    'patch_embeds.0.norm.weight': (19, False),
    'blocks.0.0.attn.qkv.weight': (18, True),
    'blocks.0.0.norm1.weight': (18, False),
    'pos_block.0.proj.0.weight': (18, False),
    'blocks.0.1.attn.sr.weight': (17, True),
    'patch_embeds.1.proj.weight': (16, True),
    'blocks.1.0.mlp.fc1.weight': (16, True),
    'blocks.2.9.mlp.fc2.bias': (5, False),
    'patch_embeds.3.proj.weight': (4, True),
    'blocks.3.3.mlp.fc2.weight': (1, True),
}
XCIT_TABLE = {
    'patch_embed.proj.0.0.weight': (13, True),
    'patch_embed.proj.0.1.weight': (13, False),
    'pos_embed.token_projection.weight': (13, False),
    'blocks.0.attn.qkv.weight': (12, True),
    'blocks.0.attn.temperature': (12, False),
    'blocks.0.gamma1': (12, False),
    'blocks.5.local_mp.conv1.weight': (7, True),
    'blocks.5.local_mp.bn.weight': (7, False),
    'blocks.11.mlp.fc2.weight': (1, True),
    'blocks.11.norm2.bias': (1, False),
}
BACKBONES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, bool]]]] = {
    'twins': ({'type': 'mmvit_backbones.TwinsSVT', 'arch': 'small'}, TWINS_TABLE),
    'xcit': ({'type': 'mmvit_backbones.XCiT', 'arch': 'small-12'}, XCIT_TABLE),
}
DIMS = {'twins': [64, 128, 256, 512], 'xcit': [384] * 4}


def build_model(toolkit: str, network: str) -> tuple[nn.Module, str]:
    """The model and the prefix of its backbone."""
    backbone = dict(BACKBONES[network][0])
    dims = DIMS[network]
    if toolkit == 'backbone':
        from mmvit_backbones.registry import MODELS

        return MODELS.build(backbone), ''
    if toolkit == 'plain':
        name = {'twins': 'twins_svt_small', 'xcit': 'xcit_small_12_p16'}[network]
        return create_model(name, num_classes=3), 'backbone.'
    if toolkit == 'mmdet':
        from mmdet.registry import MODELS

        config = Config.fromfile('configs/_base_/models/retinanet_fpn.py').model
        config.backbone = backbone
        config.neck.in_channels = dims
        config.neck.num_outs = 5
        config.neck.add_extra_convs = False
    elif toolkit == 'mmseg':
        from mmseg.registry import MODELS

        config = Config.fromfile('configs/_base_/models/upernet.py').model
        config.backbone = backbone
        config.decode_head.in_channels = dims
        config.auxiliary_head.in_channels = dims[2]
    else:
        from mmpretrain.registry import MODELS

        file = {'twins': 'twins-svt-small_8xb128', 'xcit': 'xcit-small-12-p16_8xb128'}[network]
        config = Config.fromfile(f'configs/imagenet/{file}_in1k.py').model
    with DefaultScope.overwrite_default_scope(toolkit):
        return MODELS.build(config), 'backbone.'


def wrap(model: nn.Module, **paramwise_cfg: Any) -> OptimWrapper:
    return build_optim_wrapper(
        model,
        {
            'type': 'OptimWrapper',
            'optimizer': {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.1},
            'constructor': 'mmvit_backbones.LayerDecayOptimWrapperConstructor',
            'paramwise_cfg': paramwise_cfg,
        },
    )


def groups_by_name(model: nn.Module, wrapper: OptimWrapper) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    return {names[id(p)]: group for group in groups for p in group['params']}


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')  # mmseg's loss
@pytest.mark.parametrize('network', ['twins', 'xcit'])
@pytest.mark.parametrize('toolkit', ['mmdet', 'mmseg', 'mmpretrain', 'plain', 'backbone'])
def test_table(toolkit: str, network: str) -> None:
    with torch.device('meta'):
        model, prefix = build_model(toolkit, network)
    groups = groups_by_name(model, wrap(model, layer_decay_rate=RATE))
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, (steps, decays) in BACKBONES[network][1].items():
        group = groups[prefix + name]
        assert group['lr'] == group['lr_scale'] == RATE**steps, name
        assert group['weight_decay'] == (0.1 if decays else 0.0), name
    inside = ('blocks.', 'patch_embed', 'pos_')
    for name, group in groups.items():
        if not name.startswith(tuple(prefix + part for part in inside)):
            assert group['lr_scale'] == 1, name


def test_class_token_has_no_decay() -> None:
    model = create_model('xcit_nano_12_p16', num_classes=3)
    groups = groups_by_name(model, wrap(model, layer_decay_rate=RATE))
    assert groups['neck.cls_token']['weight_decay'] == 0
    assert groups['neck.cls_attn_blocks.0.attn.qkv.weight']['weight_decay'] == 0.1


def test_config_changes_the_defaults() -> None:
    model = create_model('xcit_nano_12_p16', num_classes=3)
    wrapper = wrap(
        model,
        layer_decay_rate=RATE,
        norm_decay_mult=0.1,
        bias_decay_mult=0.2,
        flat_decay_mult=0.3,
        custom_keys={
            'temperature': {},
            'blocks.0.attn.temperature': {'decay_mult': 0.4},
            'head': {'lr_mult': 10.0},
        },
    )
    groups = groups_by_name(model, wrapper)
    decays = {
        'backbone.blocks.1.attn.temperature': 0.1,
        'backbone.blocks.0.attn.temperature': 0.04,
        'backbone.blocks.0.norm1.bias': 0.01,
        'backbone.blocks.0.mlp.fc1.bias': 0.02,
        'backbone.blocks.0.gamma1': 0.03,
        'head.fc.bias': 0.1,
    }
    assert {n: pytest.approx(groups[n]['weight_decay']) for n in decays} == decays
    assert groups['head.fc.weight']['lr'] == 10


def test_frozen_parameters_are_left_out() -> None:
    model = create_model('twins_svt_small', frozen_stages=2)
    names = groups_by_name(model, wrap(model, layer_decay_rate=RATE)).keys()
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert 'blocks.1.0.mlp.fc1.weight' not in names


def test_groups_are_few_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(layer_decay, 'print_log', lambda line, logger: lines.append(line))
    model = create_model('twins_svt_small')
    wrapper = wrap(model, layer_decay_rate=RATE)
    assert (
        len(wrapper.optimizer.param_groups) == 19 * 2 + 1
    )  # after the blocks there are only norms
    assert lines[0] == 'Layer-wise decay, 39 groups of parameters:'
    assert len(lines) == 40
    assert lines[2] == (
        '  depth  0, lr x 1.907e-06, weight decay x 1, 3,072 values in 1 tensors: '
        'patch_embeds.0.proj.weight'
    )


def test_without_weight_decay() -> None:
    constructor = LayerDecayOptimWrapperConstructor(
        {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 1.0}},
        {'layer_decay_rate': RATE},
    )
    assert {group['weight_decay'] for group in constructor(TwinsSVT()).optimizer.param_groups} == {
        0
    }


@pytest.mark.parametrize(
    ('paramwise_cfg', 'message'),
    [
        ({}, 'must hold layer_decay_rate'),
        ({'layer_decay_rate': 0}, r'must lie in \(0, 1\], got 0'),
        ({'layer_decay_rate': 1.1}, r'must lie in \(0, 1\], got 1.1'),
        ({'layer_decay_rate': 0.5, 'num_layers': 12}, 'got num_layers'),
        (
            {'layer_decay_rate': 0.5, 'custom_keys': {'head': {'lr': 1.0}}},
            r"custom_keys\['head'\] takes lr_mult and decay_mult",
        ),
    ],
)
def test_wrong_settings(paramwise_cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(TwinsSVT(out_indices=(0,)), **paramwise_cfg)


def test_needs_a_learning_rate() -> None:
    with pytest.raises(ValueError, match='optimizer must hold lr'):
        LayerDecayOptimWrapperConstructor(
            {'optimizer': {'type': 'SGD'}}, {'layer_decay_rate': RATE}
        )


def test_needs_one_backbone() -> None:
    two = nn.ModuleList([TwinsSVT(out_indices=(0,)), TwinsSVT(out_indices=(0,))])
    for model in (nn.Linear(2, 2), two):
        with pytest.raises(ValueError, match='one trainable backbone'):
            wrap(model, layer_decay_rate=RATE)


def test_teacher_beside_the_backbone_does_not_count() -> None:
    student, teacher = TwinsSVT(out_indices=(0,)), TwinsSVT(out_indices=(0,))
    model = nn.ModuleDict({'student': student, 'teacher': teacher.requires_grad_(False)})
    names = groups_by_name(model, wrap(model, layer_decay_rate=RATE)).keys()
    assert {name.split('.')[0] for name in names} == {'student'}
