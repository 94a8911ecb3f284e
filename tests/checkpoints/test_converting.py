"""Every source's weights through our models and back, against the packages they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vit_pytorch.twins_svt import TwinsSVT as VitPytorchTwins

from mmvit_backbones import TwinsSVT, XCiT, convert_state_dict, create_model
from mmvit_backbones.backbones.twins_svt import TwinsSVTArch
from mmvit_backbones.backbones.xcit import XCiTArch
from mmvit_backbones.checkpoints import load_checkpoint
from tests.checkpoints.peers import (
    PEERS,
    TWINS,
    VIT_PYTORCH_TWINS,
    VIT_PYTORCH_XCIT,
    XCIT,
    Peer,
    classifier,
    mmseg_backbone,
    official_file,
    official_twins,
    official_xcit,
    shapes_of,
    timm_twins,
    timm_xcit,
    without_values,
)
from tests.utils import assert_same, max_error, randomize

FEW = settings(max_examples=8, deadline=None)
TEMPERATURE = 'temperature'


def check_peer(peer: Peer, dialect: str, arch, patch_size: int, size: tuple[int, int]) -> None:
    """Theirs into ours strictly, the same logits, back into theirs strictly, the same weights."""
    theirs = peer.random(arch, patch_size)
    weights = theirs.state_dict()
    ours = classifier(arch, patch_size)
    report = load_checkpoint(ours, weights, dialect)
    assert report.dialect == dialect
    assert not report.missing
    assert not report.unexpected
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = peer.logits(theirs, x)
        assert max_error(ours(x), expected) < 1e-12 * max(1, float(expected.abs().max()))

    back = convert_state_dict(ours.state_dict(), arch, dialect)
    rounded = {k for k in weights if k.endswith(TEMPERATURE)} if dialect == 'vit-pytorch' else set()
    for key in rounded:
        torch.testing.assert_close(back[key], weights[key], rtol=1e-15, atol=1e-15)
    assert_same(
        {k: v for k, v in back.items() if k not in rounded},
        {k: v for k, v in weights.items() if k not in rounded},
    )
    other = peer.random(arch, patch_size)
    other.load_state_dict(back, strict=True)
    again = convert_state_dict(back, arch, 'ours')
    assert again.keys() == ours.state_dict().keys()


@pytest.mark.parametrize('name', PEERS)
def test_peer(name: str) -> None:
    peer, arch = PEERS[name]
    size = (64, 64) if arch is VIT_PYTORCH_XCIT else (224, 224)
    check_peer(peer, name.split()[0], arch, 16, size)


@FEW
@given(
    heads=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    depths=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    ratios=st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4),
    source=st.sampled_from(['timm', 'mmpretrain']),
)
def test_any_twins(heads: list, depths: list, ratios: list, source: str) -> None:
    stages = tuple(('LG' * 2)[:depth] for depth in depths)
    dims = tuple(4 * h for h in heads)
    arch = TwinsSVTArch(
        dims, stages, tuple(heads), head_dims=4, sr_ratios=tuple(ratios), window_size=2
    )
    check_peer(PEERS[f'{source} twins'][0], source, arch, 16, (64, 64))


@FEW
@given(
    heads=st.integers(1, 4),
    depth=st.integers(1, 4),
    patch_size=st.sampled_from([4, 8, 16]),
    tokens_norm=st.booleans(),
    source=st.sampled_from(['timm', 'mmpretrain']),
)
def test_any_xcit(heads: int, depth: int, patch_size: int, tokens_norm: bool, source: str) -> None:
    if patch_size == 4:  # only in timm's names
        source = 'timm'
    arch = XCiTArch(8 * heads, depth, heads, layer_scale=1.0, tokens_norm=tokens_norm)
    check_peer(PEERS[f'{source} xcit'][0], source, arch, patch_size, (32, 64))


@FEW
@given(
    units=st.lists(st.integers(2, 3), min_size=4, max_size=4),
    dims=st.lists(st.sampled_from([4, 6, 8]), min_size=4, max_size=4),
)
def test_any_vit_pytorch_twins(units: list, dims: list) -> None:
    stages = (*('LG' * n for n in units[:3]), 'G' * units[3])
    arch = replace(VIT_PYTORCH_TWINS, embed_dims=tuple(dims), stages=stages)
    check_peer(PEERS['vit-pytorch twins'][0], 'vit-pytorch', arch, 16, (224, 224))


@FEW
@given(
    depth=st.integers(1, 3),
    cls_layers=st.integers(1, 2),
    patch_size=st.sampled_from([4, 8, 16]),
    head_dims=st.sampled_from([3, 8]),
    side=st.integers(1, 4),
)
def test_any_vit_pytorch_xcit(
    depth: int, cls_layers: int, patch_size: int, head_dims: int, side: int
) -> None:
    side *= max(1, 32 // patch_size)  # our backbones take images from 32 px
    arch = replace(
        VIT_PYTORCH_XCIT,
        depth=depth,
        cls_layers=cls_layers,
        head_dims=head_dims,
        grid_size=(side, side),
    )
    size = (side * patch_size, side * patch_size)
    check_peer(PEERS['vit-pytorch xcit'][0], 'vit-pytorch', arch, patch_size, size)


def test_mmseg_twins() -> None:
    theirs = randomize(mmseg_backbone(TWINS)).double().eval()
    ours = randomize(TwinsSVT(TWINS), seed=1).double().eval()
    report = load_checkpoint(ours, theirs.state_dict())
    assert report.dialect == 'mmseg'
    assert not report.missing
    assert not report.unexpected
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        for actual, expected in zip(ours(x), theirs(x), strict=True):
            assert max_error(actual, expected) < 1e-12
    back = convert_state_dict(ours.state_dict(), TWINS, 'mmseg')
    assert_same(back, theirs.state_dict())
    randomize(mmseg_backbone(TWINS), seed=2).double().load_state_dict(back, strict=True)


def test_mmseg_file_with_final_norm() -> None:
    """The files that mmsegmentation hosts keep the authors' final norm under its old name."""
    theirs = convert_state_dict(official_file(TWINS), TWINS, 'mmseg')
    assert not [key for key in theirs if key.startswith(('norm.', 'head'))]
    theirs['norm.weight'] = theirs['norm.bias'] = torch.ones(32)
    report = load_checkpoint(TwinsSVT(TWINS).double(), theirs)
    assert report.dialect == 'mmseg'
    assert report.unexpected == ('neck.norm.weight', 'neck.norm.bias')


@pytest.mark.parametrize(('arch', 'peer'), [(TWINS, timm_twins), (XCIT, timm_xcit)])
@pytest.mark.parametrize('patch_size', [8, 16])
def test_official(arch, peer, patch_size: int) -> None:
    """The authors' files by the list of their keys; timm is the judge of the values."""
    weights = official_file(arch, patch_size)
    ours = classifier(arch, patch_size)
    report = load_checkpoint(ours, weights)
    assert report.dialect == 'official'
    assert not report.missing
    assert not report.unexpected
    assert_same(convert_state_dict(ours.state_dict(), arch, 'official'), weights)

    theirs = peer(arch, patch_size).double().eval()
    theirs.load_state_dict(convert_state_dict(weights, arch, 'timm'), strict=True)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(ours(x), theirs(x)) < 1e-12

    # Self-supervised: no head.
    headless = {key: value for key, value in weights.items() if not key.startswith('head.')}
    features = classifier(arch, patch_size, num_classes=0)
    report = load_checkpoint(features, headless)
    assert (report.dialect, report.missing, report.unexpected) == ('official', (), ())
    assert_same(
        features.state_dict(), {k: v for k, v in ours.state_dict().items() if 'head' not in k}
    )


def test_official_dense_copies() -> None:
    """Detection and segmentation: output norms for Twins-SVT, the pyramid for XCiT, no head."""
    twins = randomize(TwinsSVT(TWINS)).double()
    names = convert_state_dict(twins.state_dict(), TWINS, 'official').keys()
    imagenet = official_twins(TWINS, 5).keys()
    assert names - imagenet == {f'norm_list.{k}.{w}' for k in range(4) for w in ('weight', 'bias')}
    assert imagenet - names == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}

    for patch_size, convs in ((16, ('fpn1.0', 'fpn1.3', 'fpn2.0')), (8, ('fpn1.0',))):
        xcit = XCiT(XCIT, patch_size, out_indices=(0, 1, 2), pyramid=False)
        assert not [k for k in xcit.state_dict() if k.startswith('pyramid')]
        deeper = replace(XCIT, depth=5)
        xcit = randomize(XCiT(deeper, patch_size)).double()
        dense = convert_state_dict(xcit.state_dict(), deeper, 'official')
        added = dense.keys() - official_xcit(deeper, patch_size, 5).keys()
        expected = {f'{conv}.{w}' for conv in convs for w in ('weight', 'bias')}
        if patch_size == 16:
            values = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
            expected |= {f'fpn1.1.{value}' for value in values}
        assert added == expected
        other = XCiT(deeper, patch_size).double()
        report = load_checkpoint(other, dense)
        assert (report.dialect, report.missing, report.unexpected) == ('official', (), ())
        assert_same(other.state_dict(), xcit.state_dict())


def test_vit_pytorch_default_model() -> None:
    """The package's default architecture is our named one; names and shapes, without values."""
    with without_values():
        theirs = VitPytorchTwins(num_classes=5).state_dict()
        ours = create_model('twins_svt_vit_pytorch', num_classes=5).state_dict()
    converted = convert_state_dict(ours, 'twins_svt_vit_pytorch', 'vit-pytorch')
    assert shapes_of(converted) == shapes_of(theirs)
    back = convert_state_dict(theirs, 'twins_svt_vit_pytorch', 'ours')
    assert shapes_of(back) == shapes_of(ours)


@pytest.mark.parametrize('first', ['official', 'timm', 'mmpretrain', 'ours'])
@pytest.mark.parametrize('second', ['official', 'timm', 'mmpretrain', 'ours'])
@pytest.mark.parametrize('arch', [TWINS, XCIT], ids=['twins', 'xcit'])
def test_there_and_back(arch, first: str, second: str) -> None:
    start = convert_state_dict(official_file(arch), arch, first)
    assert_same(convert_state_dict(convert_state_dict(start, arch, second), arch, first), start)


def test_wrapped_state_dict() -> None:
    weights = official_file(TWINS)
    wrapped = {'epoch': 3, 'model': {f'module.{key}': value for key, value in weights.items()}}
    assert_same(convert_state_dict(wrapped, TWINS, 'official'), weights)


def test_wrong_arguments() -> None:
    weights = official_file(TWINS)
    with pytest.raises(ValueError, match=r"to must be one of .*got 'tim'"):
        convert_state_dict(weights, TWINS, 'tim')
    with pytest.raises(ValueError, match=r"arch must be one of .*'twins_svt_base'.*got 'small'"):
        convert_state_dict(weights, 'small', 'timm')
    with pytest.raises(TypeError, match='arch must be the name of a model'):
        convert_state_dict(weights, {'embed_dims': 1}, 'timm')
    with pytest.raises(ValueError, match='arch is twins_svt_small, but the weights are a'):
        convert_state_dict(weights, 'twins_svt_small', 'timm')
    with pytest.raises(ValueError, match="'vit-pytorch', which has another structure"):
        convert_state_dict(weights, TWINS, 'vit-pytorch')
    with pytest.raises(ValueError, match="dialect 'mmseg' does not have xcit"):
        convert_state_dict(official_file(XCIT), XCIT, 'mmseg')


@pytest.mark.parametrize('dialect', ['official', 'timm', 'mmpretrain'])
def test_vit_pytorch_structure_stays(dialect: str) -> None:
    weights = classifier(VIT_PYTORCH_XCIT).state_dict()
    with pytest.raises(ValueError, match="weights of variant 'vit-pytorch' cannot be converted"):
        convert_state_dict(weights, VIT_PYTORCH_XCIT, dialect)


def test_temperature_without_logarithm() -> None:
    weights = classifier(VIT_PYTORCH_XCIT).state_dict()
    weights['backbone.blocks.1.attn.temperature'] = -torch.ones(2, 1, 1)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.temperature' must be positive"):
        convert_state_dict(weights, VIT_PYTORCH_XCIT, 'vit-pytorch')


def test_position_table_of_another_shape() -> None:
    weights = classifier(VIT_PYTORCH_XCIT).state_dict()
    weights['backbone.pos_embed.table'] = torch.zeros(1, 2, 4, 32)
    with pytest.raises(ValueError, match=r'pos_embed.table must be square'):
        convert_state_dict(weights, VIT_PYTORCH_XCIT, 'vit-pytorch')
    theirs = PEERS['vit-pytorch xcit'][0].random(VIT_PYTORCH_XCIT).state_dict()
    theirs['pos_embedding'] = torch.zeros(1, 15, 32)
    with pytest.raises(ValueError, match='square number of positions, got 15'):
        convert_state_dict(theirs, VIT_PYTORCH_XCIT, 'ours')
