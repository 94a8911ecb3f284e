"""Files written: converted weights, and checkpoints cleaned for publication."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file

from mmvit_backbones import convert_state_dict
from mmvit_backbones.checkpoints.writing import convert_file, publish_file
from tests.checkpoints.peers import TWINS, official_file
from tests.utils import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A training checkpoint with all that comes with it."""
    weights = official_file(TWINS)
    content = {
        'meta': {
            'epoch': 3,
            'cfg': 'model = dict()',
            'dataset_meta': {'classes': ('cat', 'dog'), 'palette': [(0, 1, 2)]},
            'hooks': HistoryBuffer([1.0], [1]),
        },
        'state_dict': weights,
        'ema_state_dict': {f'module.{key}': value.clone() for key, value in weights.items()},
        'optimizer': {'state': {0: {'exp_avg': torch.ones(99)}}, 'param_groups': []},
        'message_hub': {'log_scalars': HistoryBuffer([1.0], [1])},
        'args': argparse.Namespace(lr=1.0),
    }
    torch.save(content, tmp_path / 'epoch_3.pth')
    return tmp_path / 'epoch_3.pth'


def test_convert_to_safetensors(path: Path, tmp_path: Path) -> None:
    written, conversion = convert_file(str(path), str(tmp_path / 'new/timm'), to='mmpretrain')
    assert written == tmp_path / 'new/timm.safetensors'
    expected = convert_state_dict(official_file(TWINS), TWINS, 'mmpretrain')
    assert_same(load_file(written), expected)
    assert str(conversion).endswith(
        f'{len(expected)} tensors from official to mmpretrain, dropped 0'
    )


def test_convert_to_pth(path: Path, tmp_path: Path) -> None:
    written, conversion = convert_file(str(path), str(tmp_path / 'mmseg.pth'), to='mmseg')
    content = torch.load(written, weights_only=True)
    assert_same(content['state_dict'], conversion.state_dict)
    assert content['meta']['dataset_meta'] == {'classes': ('cat', 'dog'), 'palette': [(0, 1, 2)]}
    assert 'hooks' not in content['meta']
    assert conversion.dropped == (
        'neck.norm.weight',
        'neck.norm.bias',
        'head.fc.weight',
        'head.fc.bias',
    )


def test_convert_checks_the_architecture(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='arch is twins_svt_base, but the weights are a'):
        convert_file(str(path), str(tmp_path / 'new'), arch='twins_svt_base')
    assert not (tmp_path / 'new.safetensors').exists()
    with pytest.raises(ValueError, match=r"destination must end in .*got '.*new\.bin'"):
        convert_file(str(path), str(tmp_path / 'new.bin'))


@pytest.mark.parametrize('suffix', ['', '.pth', '.safetensors'])
def test_publish(path: Path, tmp_path: Path, suffix: str) -> None:
    written = publish_file(str(path), str(tmp_path / f'net{suffix}'))
    digits = hashlib.sha256(written.read_bytes()).hexdigest()[:8]
    assert written == tmp_path / f'net-{digits}{suffix or ".pth"}'
    if suffix == '.safetensors':
        assert_same(load_file(written), official_file(TWINS))
        return
    content = torch.load(written, weights_only=True)
    assert content.keys() == {'state_dict', 'meta'}
    assert_same(content['state_dict'], official_file(TWINS))
    assert content['meta'].keys() == {'epoch', 'cfg', 'dataset_meta'}
    assert written.stat().st_size < 0.6 * path.stat().st_size
