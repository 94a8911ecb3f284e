"""Files: what is read, what is refused, and how the message reads."""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import pickle
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.reading import Placeholder, read_checkpoint, read_file
from tests.checkpoints.peers import assert_same

WEIGHTS = {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2)}


class RunsCode:
    """A harmless stand-in for a malicious object: unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, 'this code ran')


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
    assert isinstance(read_file(path)['history'], Placeholder)


def test_nothing_is_allowed_outside(path: Path) -> None:
    """The allow-list holds during our own reading only."""
    torch.save({'args': argparse.Namespace()}, path)
    before = set(torch.serialization.get_safe_globals())
    read_file(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('variable', ['', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_code_is_refused(
    path: Path, legacy: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, '1')
    marker = path.with_name('marker')
    content = {'state_dict': WEIGHTS, 'extra': RunsCode(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused, it holds '[\w.]+', which could run"):
        read_checkpoint(path)
    assert not marker.exists()


def test_the_list_cannot_be_used_to_reach_code(path: Path) -> None:
    """`getattr` is on it, since MMEngine's files name it, but stands for nothing."""

    class Reaches:
        def __reduce__(self) -> tuple:
            return getattr, (argparse.Namespace, '__init__')

    torch.save({'state_dict': WEIGHTS, 'extra': Reaches()}, path)
    assert isinstance(read_file(path)['extra'], Placeholder)


def damaged_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    torch.save(WEIGHTS, tmp_path / 'whole.pth')
    torch.save(WEIGHTS, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, tmp_path / 'whole.safetensors')
    with zipfile.ZipFile(tmp_path / 'archive.zip', 'w') as archive:
        archive.writestr('readme.txt', 'no weights here')

    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return {
        'empty': (write('empty.pth', b''), 'the file is empty'),
        'page': (write('page.pth', b'\n <!DOCTYPE html><html>'), 'this is a web page, not weights'),
        'text': (write('text.pth', b'hello world, this is text'), 'neither a .pth nor'),
        'short': (write('short.pth', b'hi'), 'neither a .pth nor'),
        'cut': (
            write('cut.pth', (tmp_path / 'whole.pth').read_bytes()[:-200]),
            'truncated or damaged',
        ),
        'cut legacy': (
            write('cut_legacy.pth', (tmp_path / 'legacy.pth').read_bytes()[:-30]),
            'truncated or damaged',
        ),
        'cut safetensors': (
            write('cut.safetensors', (tmp_path / 'whole.safetensors').read_bytes()[:-5]),
            'truncated or damaged',
        ),
        'other zip': (tmp_path / 'archive.zip', 'truncated or damaged'),
    }


@pytest.mark.parametrize(
    'kind',
    ['empty', 'page', 'text', 'short', 'cut', 'cut legacy', 'cut safetensors', 'other zip'],
)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path, problem = damaged_files(tmp_path)[kind]
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert problem in message
    assert str(path) in message
    assert f'({path.stat().st_size} bytes)' in message
    assert '\n' not in message


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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a folder on this machine; downloads go to `tmp_path/hub`."""
    (tmp_path / 'served').mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / 'served'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{httpd.server_port}/'
        httpd.shutdown()
        thread.join()


def test_url_is_kept(server: str, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / 'served/net.pth')
    assert_same(read_checkpoint(f'{server}net.pth?download=1'), WEIGHTS)
    assert (tmp_path / 'hub/checkpoints/net.pth').exists()
    (tmp_path / 'served/net.pth').unlink()
    assert_same(read_checkpoint(f'{server}net.pth'), WEIGHTS)


def test_downloaded_page_is_not_kept(server: str, tmp_path: Path) -> None:
    (tmp_path / 'served/net.pth').write_text('<html>please log in</html>')
    with pytest.raises(CheckpointError, match='this is a web page'):
        read_checkpoint(f'{server}net.pth')
    torch.save(WEIGHTS, tmp_path / 'served/net.pth')
    assert_same(read_checkpoint(f'{server}net.pth'), WEIGHTS)
