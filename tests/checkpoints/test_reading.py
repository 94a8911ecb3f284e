"""Files: formats, wrappers, and what is not weights."""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.reading import read_checkpoint, read_file
from tests.checkpoints.fuzz import WEIGHTS
from tests.utils import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'weights.pth'


@pytest.mark.parametrize('legacy', [False, True])
def test_pth(path: Path, legacy: bool) -> None:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=not legacy)
    assert_same(read_checkpoint(path), WEIGHTS)
    assert_same(read_checkpoint(str(path)), WEIGHTS)


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / 'weights.safetensors')
    assert_same(read_checkpoint(tmp_path / 'weights.safetensors'), WEIGHTS)
    misnamed = tmp_path / 'weights.pth'
    save_file(WEIGHTS, misnamed)
    assert_same(read_checkpoint(misnamed), WEIGHTS)


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'model_ema'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'module._orig_mod.', '_orig_mod.model.'])
def test_wrappers_and_prefixes(path: Path, wrapper: str, prefix: str) -> None:
    inner = OrderedDict((prefix + key, value) for key, value in WEIGHTS.items())
    torch.save({wrapper: inner, 'epoch': 3}, path)
    assert_same(read_checkpoint(path), WEIGHTS)


def test_the_model_goes_before_its_average(path: Path) -> None:
    averaged = {key: -value for key, value in WEIGHTS.items()}
    torch.save({'model_ema': averaged, 'model': WEIGHTS}, path)
    assert_same(read_checkpoint(path), WEIGHTS)


def test_what_the_authors_save(path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    torch.save(
        {
            'model': layer.state_dict(),
            'optimizer': optimizer.state_dict(),
            'lr_scheduler': schedule.state_dict(),
            'epoch': 299,
            'args': argparse.Namespace(lr=5e-4, data_path='imagenet', nested={'a': [1]}),
            'best': np.float64(81.7),
        },
        path,
    )
    assert_same(read_checkpoint(path), layer.state_dict())


def test_what_mmengine_saves(path: Path) -> None:
    hub = MessageHub('test_what_mmengine_saves')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('epoch', 3)
    hub.update_info('scalars', [np.float32(1), np.int64(2), np.bool_(True), np.arange(3)])
    content = {
        'meta': {'epoch': 3, 'cfg': 'model = dict()', 'dataset_meta': {'classes': ('cat',)}},
        'state_dict': OrderedDict(WEIGHTS),
        'message_hub': hub.state_dict(),
        'history': HistoryBuffer([1.0], [1]),
    }
    torch.save(content, path)
    assert_same(read_checkpoint(path), WEIGHTS)
    read = read_file(path)
    assert read['meta'] == content['meta']
    history = read['history']
    assert type(history) is HistoryBuffer
    history.update(3.0)
    assert history.mean() == 2.0
    assert read['message_hub']['log_scalars']['train/loss'].current() == 0.5
    scalars = read['message_hub']['runtime_info']['scalars']
    assert [type(value) for value in scalars[:3]] == [np.float32, np.int64, np.bool_]
    assert scalars[3].tolist() == [0, 1, 2]


def test_compressed_file(path: Path) -> None:
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert_same(read_checkpoint(path), WEIGHTS)


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'set_crc32_options'), reason='this torch always writes them'
)
def test_file_without_checksums(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(path), WEIGHTS)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ([1, 2], 'no state dict but list'),
        ({}, 'no state dict but dict'),
        ({'epoch': 3}, 'not a state dict: no tensors under 1 (epoch) of 1 keys'),
        (torch.ones(2), 'no state dict but Tensor'),
    ],
)
def test_other_content(path: Path, content: object, problem: str) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'there is no checkpoint .*gone\.pth'):
        read_checkpoint(tmp_path / 'gone.pth')
    with pytest.raises(CheckpointError, match='is not a file'):
        read_checkpoint(tmp_path)


def test_sha256(path: Path) -> None:
    torch.save(WEIGHTS, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(read_checkpoint(path, sha256=digits), WEIGHTS)
    assert_same(read_checkpoint(path, sha256=digits[:8].upper()), WEIGHTS)
    with pytest.raises(CheckpointError, match=f'SHA-256 is {digits}, expected 123'):
        read_checkpoint(path, sha256='123')
