"""Strict loading: what the report says, what is an error, and whole detectors and segmentors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn

from mmvit_backbones import TwinsSVT, XCiT, convert_state_dict, create_model, load_checkpoint
from mmvit_backbones.checkpoints import CheckpointError, LoadReport
from tests.checkpoints.peers import (
    CLASSES,
    PEERS,
    TWINS,
    VIT_PYTORCH_XCIT,
    XCIT,
    classifier,
    official_file,
)
from tests.utils import assert_same, max_error, randomize

DEEP_XCIT = replace(XCIT, depth=5)


def detector(backbone: dict, num_classes: int = 4) -> nn.Module:
    """A tiny RetinaNet."""
    channels = [32] * 4 if 'XCiT' in backbone['type'] else list(TWINS.embed_dims)
    return MMDET_MODELS.build(
        dict(
            type='RetinaNet',
            backbone=backbone,
            neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=5),
            bbox_head=dict(
                type='RetinaHead',
                num_classes=num_classes,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=dict(
                    type='AnchorGenerator',
                    octave_base_scale=4,
                    scales_per_octave=1,
                    ratios=[1.0],
                    strides=[8, 16, 32, 64, 128],
                ),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            ),
        )
    )


def segmentor(backbone: dict, num_classes: int = 4) -> nn.Module:
    """A tiny model with UPerNet's head."""
    return MMSEG_MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=backbone,
            decode_head=dict(
                type='FCNHead',
                in_channels=32,
                in_index=3,
                channels=8,
                num_convs=1,
                num_classes=num_classes,
                loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )


TWINS_BACKBONE = dict(type='mmvit_backbones.TwinsSVT', arch=TWINS)
XCIT_BACKBONE = dict(type='mmvit_backbones.XCiT', arch=DEEP_XCIT)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(x, mode='tensor')
    return [
        value for part in out for value in (part if isinstance(part, (list, tuple)) else [part])
    ]


def test_report_of_a_full_load() -> None:
    model = classifier(TWINS)
    report = load_checkpoint(model, official_file(TWINS))
    assert report.dialect == 'official'
    assert report.loaded == tuple(model.state_dict())
    assert (report.missing, report.unexpected, report.notes) == ((), (), ())
    assert str(report).startswith(
        f'dialect official: loaded {len(report.loaded)} of {len(report.loaded)} tensors'
    )


def test_imagenet_file_into_dense_twins() -> None:
    model = randomize(TwinsSVT(TWINS)).double()
    norms = [value.clone() for value in model.norm_list.state_dict().values()]
    report = load_checkpoint(model, official_file(TWINS))
    assert report.missing == tuple(
        f'norm_list.{k}.{w}' for k in range(4) for w in ('weight', 'bias')
    )
    assert report.unexpected == (
        'neck.norm.weight',
        'neck.norm.bias',
        'head.fc.weight',
        'head.fc.bias',
    )
    assert report.notes == (
        'the source has no output norms',
        'a backbone has no parameters for the neck and head of the source',
    )
    for before, after in zip(norms, model.norm_list.state_dict().values(), strict=True):
        assert torch.equal(before, after)


def test_imagenet_file_into_dense_xcit() -> None:
    model = XCiT(DEEP_XCIT).double()
    weights = official_file(DEEP_XCIT)
    report = load_checkpoint(model, weights)
    assert {name.split('.')[0] for name in report.missing} == {'pyramid'}
    assert 'neck.cls_token' in report.unexpected
    assert 'the source has no pyramid' in report.notes
    assert torch.equal(
        model.state_dict()['blocks.4.mlp.fc1.bias'], weights['blocks.4.mlp.fc1.bias']
    )


def test_dense_file_into_another_use() -> None:
    dense = randomize(XCiT(DEEP_XCIT)).double().state_dict()
    report = load_checkpoint(XCiT(DEEP_XCIT, out_indices=(4,), pyramid=False).double(), dense)
    assert {name.split('.')[0] for name in report.unexpected} == {'pyramid'}
    assert report.notes == ('the model has no pyramid',)


@pytest.mark.parametrize(
    'model',
    [
        lambda: TwinsSVT(TWINS, out_indices=(0, 1), out_norm=False),
        lambda: XCiT(XCIT, out_indices=(0, 1), pyramid=False),
    ],
)
def test_part_of_a_backbone(model) -> None:
    model = model().double()
    arch = TWINS if isinstance(model, TwinsSVT) else XCIT
    weights = official_file(arch)
    report = load_checkpoint(model, weights)
    assert not report.missing
    assert 'the model ends before the last stage or block of its architecture' in report.notes
    last = convert_state_dict(weights, arch, 'ours')
    for name, value in model.state_dict().items():
        assert torch.equal(value, last[f'backbone.{name}'])


def test_another_number_of_classes() -> None:
    model = classifier(TWINS, num_classes=CLASSES + 2)
    report = load_checkpoint(model, official_file(TWINS))
    assert report.missing == ('head.fc.weight', 'head.fc.bias')
    assert report.notes == ('another number of classes (5 in the source, 7 in the model)',)
    report = load_checkpoint(classifier(TWINS, num_classes=0), official_file(TWINS))
    assert report.unexpected == ('head.fc.weight', 'head.fc.bias')
    assert report.notes == ('the model is a classifier without a head',)


def test_another_grid() -> None:
    weights = PEERS['vit-pytorch xcit'][0].random(VIT_PYTORCH_XCIT).state_dict()
    ours = classifier(replace(VIT_PYTORCH_XCIT, grid_size=(6, 5)))
    report = load_checkpoint(ours, weights)
    assert report.notes == ('position table interpolated from (4, 4) to (6, 5)',)
    table = ours.backbone.pos_embed.table
    expected = weights['pos_embedding'].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(expected, (6, 5), mode='bicubic')
    assert max_error(table.permute(0, 3, 1, 2), expected) < 1e-12


def test_file_without_batch_counts() -> None:
    weights = {k: v for k, v in official_file(XCIT).items() if 'num_batches' not in k}
    report = load_checkpoint(classifier(XCIT), weights)
    assert all(name.endswith('num_batches_tracked') for name in report.missing)
    assert report.notes == ("the source does not count BatchNorm's batches",)


def fails(model: nn.Module, source: object, dialect: str = 'auto') -> str:
    """The message of a load that must fail and change nothing."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, source, dialect)
    assert_same(model.state_dict(), before)
    return str(caught.value)


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('twins_svt_small', 'twins_svt_base'),
        ('xcit_nano_12_p16', 'xcit_nano_12_p8'),
        ('xcit_nano_12_p16', 'xcit_tiny_12_p16'),
    ],
)
def test_another_architecture(name: str, found: str) -> None:
    source = create_model(found, num_classes=3).state_dict()
    message = fails(create_model(name), source)
    assert f'the weights are {found}, the model is {name}' in message


def test_a_deeper_file_is_not_cut_silently() -> None:
    message = fails(classifier(XCIT), official_file(replace(XCIT, depth=5)))
    assert 'the weights are a xcit with variant paper, embed_dims 32, depth 5' in message


def test_another_network() -> None:
    message = fails(classifier(XCIT), official_file(TWINS))
    assert 'the weights are a twins_svt with variant paper, embed_dims (8, 16' in message


def test_zero_match() -> None:
    resnet = {f'layer1.{i}.conv1.weight': torch.ones(1) for i in range(9)}
    message = fails(classifier(XCIT), resnet)
    assert 'the state dict matches no source' in message
    assert '9 (layer1.0.conv1.weight, layer1.1.conv1.weight' in message
    for looked_for in (
        'official xcit: blocks.#.attn.temperature, pos_embeder.token_projection.weight',
        'mmseg twins_svt: layers.#.#.norm1.weight',
        'vit-pytorch xcit: xcit_transformer',
    ):
        assert looked_for in message


def test_ambiguous() -> None:
    both = {**official_file(TWINS), **official_file(XCIT)}
    message = fails(classifier(XCIT), both)
    assert 'matches several sources' in message
    assert 'official twins_svt' in message
    assert 'official xcit' in message


@pytest.mark.parametrize('arch', [TWINS, XCIT], ids=['twins', 'xcit'])
def test_half_match(arch) -> None:
    weights = official_file(arch)
    model = classifier(arch)
    keys = [key for key in weights if 'mlp' in key]
    half = {key: value for key, value in weights.items() if key not in keys}
    message = fails(model, half)
    total = len(weights)
    assert f'{total - len(keys)} of {total} tensors of the model would be loaded' in message
    assert f'missing {len(keys)} (backbone.blocks.' in message

    renamed = {key.replace('mlp', 'ffn'): value for key, value in weights.items()}
    message = fails(model, renamed)
    assert f'no rule for {len(keys)} of {total} keys: {len(keys)} (blocks.' in message


def test_shapes_that_do_not_fit() -> None:
    weights = official_file(TWINS)
    weights['blocks.0.0.mlp.fc1.bias'] = torch.ones(3)
    message = fails(classifier(TWINS), weights)
    assert (
        'other shapes (source -> model) 1 (backbone.blocks.0.0.mlp.fc1.bias (3,) -> (32,))'
        in message
    )


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"dialect must be one of .*got 'timn'"):
        load_checkpoint(classifier(TWINS), official_file(TWINS), 'timn')
    with pytest.raises(ValueError, match="dialect 'mmseg' does not have xcit"):
        load_checkpoint(classifier(XCIT), official_file(XCIT), 'mmseg')
    with pytest.raises(ValueError, match='exactly one backbone of this package, Linear holds 0'):
        load_checkpoint(nn.Linear(1, 1), official_file(XCIT))
    two = nn.Sequential(TwinsSVT(TWINS), TwinsSVT(TWINS))
    with pytest.raises(ValueError, match=r'holds 2 \(0, 1\)'):
        load_checkpoint(two, official_file(TWINS))


def test_wrong_dialect_is_an_error() -> None:
    assert 'no rule for' in fails(classifier(XCIT), official_file(XCIT), 'timm')


@pytest.mark.parametrize('backbone', [TWINS_BACKBONE, XCIT_BACKBONE], ids=['twins', 'xcit'])
@pytest.mark.parametrize('build', [detector, segmentor])
def test_whole_model_in_the_authors_names(backbone: dict, build, tmp_path: Path) -> None:
    """A file as from mmdet 2 or mmseg 0 gives the model that it was made from."""
    first = randomize(build(backbone)).eval()
    weights = first.state_dict()
    arch = first.backbone.arch
    theirs = convert_state_dict(weights, arch, 'official')
    if arch is DEEP_XCIT:
        assert 'backbone.fpn1.3.weight' in theirs
        assert 'backbone.pos_embeder.token_projection.weight' in theirs
    else:  # their dense copies keep the ImageNet head and norm without using them
        theirs |= {
            f'backbone.{kind}.{w}': torch.ones(32)
            for kind in ('norm', 'head')
            for w in ('weight', 'bias')
        }
    others = {key for key in weights if not key.startswith('backbone.')}
    assert others
    assert all(theirs[key] is weights[key] for key in others)
    torch.save({'meta': {'mmdet_version': '2.11.0'}, 'state_dict': theirs}, tmp_path / 'model.pth')

    second = randomize(build(backbone), seed=2).eval()
    report = load_checkpoint(second, tmp_path / 'model.pth')
    assert report.dialect == 'official'
    assert report.missing == ()
    unused = [] if arch is DEEP_XCIT else ['neck.norm', 'head.fc']
    assert list(report.unexpected) == [f'{name}.{w}' for name in unused for w in ('weight', 'bias')]
    x = torch.randn(1, 3, 64, 96)
    for expected, actual in zip(outputs(first, x), outputs(second, x), strict=True):
        assert torch.equal(expected, actual)


def test_detector_for_other_classes() -> None:
    first = detector(TWINS_BACKBONE, num_classes=4)
    report = load_checkpoint(detector(TWINS_BACKBONE, num_classes=6), first.state_dict())
    assert report.missing == ('bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias')
    assert report.notes == ('another number of classes (4 in the source, 6 in the model)',)


def test_backbone_of_a_detector_file() -> None:
    first = randomize(detector(TWINS_BACKBONE))
    model = TwinsSVT(TWINS)
    report = load_checkpoint(model, first.state_dict())
    assert not report.missing
    assert report.notes == ('a backbone has no parameters for the neck and head of the source',)
    assert_same(model.state_dict(), first.backbone.state_dict())


def test_imagenet_file_does_not_fill_a_detector() -> None:
    message = fails(
        detector(TWINS_BACKBONE), convert_state_dict(official_file(TWINS), TWINS, 'ours')
    )
    assert 'missing' in message
    assert 'load into `model.backbone`' in message


def test_report_names_counts_and_examples() -> None:
    report = LoadReport('timm', ('a', 'b'), ('c',), ('d', 'e', 'f', 'g'), ('b',), ('why',))
    assert str(report).splitlines() == [
        'dialect timm: loaded 2 of 3 tensors of the model',
        '  missing, left as they were: 1 (c)',
        '  unexpected, not loaded: 4 (d, e, f, ...)',
        '  adapted to another shape: 1 (b)',
        '  note: why',
    ]
