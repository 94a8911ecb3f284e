"""`init_cfg=dict(type='mmvit_backbones.Pretrained', ...)` in every toolkit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS

from mmvit_backbones import convert_state_dict
from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.download import file_sha256
from tests.checkpoints.payloads import RunsCode
from tests.checkpoints.peers import TWINS, classifier, official_file
from tests.checkpoints.test_loading import TWINS_BACKBONE, detector
from tests.utils import assert_same, randomize


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The authors' ImageNet file."""
    torch.save({'model': official_file(TWINS)}, tmp_path / 'alt_gvt_toy.pth')
    return tmp_path / 'alt_gvt_toy.pth'


def init_cfg(path: Path, **options: str) -> dict:
    return dict(type='mmvit_backbones.Pretrained', checkpoint=str(path), **options)


@pytest.mark.parametrize(
    'registry', [MMENGINE_MODELS, MMDET_MODELS, MMSEG_MODELS, MMPRETRAIN_MODELS]
)
def test_backbone(registry, path: Path) -> None:
    model = registry.build(dict(TWINS_BACKBONE, init_cfg=init_cfg(path)))
    expected = convert_state_dict(official_file(TWINS), TWINS, 'ours')
    before = model.state_dict()['blocks.0.0.mlp.fc1.weight'].clone()
    model.init_weights()
    for name, value in model.state_dict().items():
        if not name.startswith('norm_list'):
            assert torch.equal(value, expected[f'backbone.{name}'].float()), name
    assert not torch.equal(model.state_dict()['blocks.0.0.mlp.fc1.weight'], before)


def test_options(path: Path) -> None:
    digits = file_sha256(path)
    cfg = init_cfg(path, dialect='official', sha256=digits)
    MMENGINE_MODELS.build(dict(TWINS_BACKBONE, init_cfg=cfg)).init_weights()
    model = MMENGINE_MODELS.build(dict(TWINS_BACKBONE, init_cfg=init_cfg(path, sha256='f' * 64)))
    with pytest.raises(CheckpointError, match='expected ffff'):
        model.init_weights()


def test_whole_model(tmp_path: Path) -> None:
    """What a detector's parts would do to their weights afterwards is left out."""
    first = randomize(detector(TWINS_BACKBONE))
    torch.save({'state_dict': first.state_dict()}, tmp_path / 'detector.pth')
    second = detector(TWINS_BACKBONE)
    second.init_cfg = init_cfg(tmp_path / 'detector.pth')
    second.init_weights()
    assert_same(second.state_dict(), first.state_dict())


def test_whole_classifier(path: Path) -> None:
    parts = dict(
        backbone=dict(TWINS_BACKBONE, out_indices=(3,), out_norm=False),
        neck=dict(type='mmvit_backbones.NormAveragePooling', in_channels=32),
        head=dict(type='LinearClsHead', in_channels=32, num_classes=5),
    )
    model = MMPRETRAIN_MODELS.build(dict(type='ImageClassifier', init_cfg=init_cfg(path), **parts))
    model.init_weights()
    expected = classifier(TWINS)
    expected.load_state_dict(convert_state_dict(official_file(TWINS), TWINS, 'ours'))
    assert_same(model.state_dict(), expected.float().state_dict())


def test_bad_file_stops(tmp_path: Path) -> None:
    torch.save({'epoch': 1, 'state_dict': {'conv.weight': torch.ones(1)}}, tmp_path / 'other.pth')
    model = MMENGINE_MODELS.build(dict(TWINS_BACKBONE, init_cfg=init_cfg(tmp_path / 'other.pth')))
    with pytest.raises(CheckpointError, match='matches no source'):
        model.init_weights()


def test_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / 'marker'
    torch.save({'state_dict': official_file(TWINS), 'x': RunsCode(marker)}, tmp_path / 'bad.pth')
    model = MMENGINE_MODELS.build(dict(TWINS_BACKBONE, init_cfg=init_cfg(tmp_path / 'bad.pth')))
    with pytest.raises(CheckpointError, match='refused'):
        model.init_weights()
    assert not marker.exists()


def test_found_without_an_import() -> None:
    """The scoped name alone imports the class."""
    code = (
        'from mmengine.registry import WEIGHT_INITIALIZERS as registry;'
        "print(registry.build(dict(type='mmvit_backbones.Pretrained', checkpoint='x.pth')))"
    )
    printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'mmvit_backbones.checkpoints.pretrained.Pretrained object' in printed.stdout, printed
