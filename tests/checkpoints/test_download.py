"""Downloads: unique names, whole files only, one process at a time, mirrors, errors."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.download import (
    Address,
    DownloadError,
    cache_folder,
    cached_path,
    download,
    file_sha256,
)
from mmvit_backbones.checkpoints.reading import read_checkpoint
from tests.checkpoints.conftest import WEIGHTS, Server
from tests.utils import assert_same

OTHERS = {key: -value for key, value in WEIGHTS.items()}


def accept(_: Path) -> None:
    """Check nothing."""


def left_over() -> list[str]:
    """Files in the cache beside locks."""
    return sorted(p.name for p in cache_folder().iterdir() if p.suffix != '.lock')


def test_addresses_with_the_same_last_part(server: Server) -> None:
    """Every file of timm's hub is called `model.safetensors`."""
    first = server.save('timm/xcit_small_12_p16_224.fb_in1k/resolve/main/model.safetensors')
    second = server.save(
        'timm/xcit_small_12_p16_224.fb_dist_in1k/resolve/main/model.safetensors', OTHERS
    )
    assert_same(read_checkpoint(first), WEIGHTS)
    assert_same(read_checkpoint(second), OTHERS)


def test_success_is_kept(server: Server, capsys: pytest.CaptureFixture) -> None:
    url = server.save('net.pth')
    assert_same(read_checkpoint(url), WEIGHTS)
    assert 'net.pth' in capsys.readouterr().err  # the progress bar
    assert left_over() == [cached_path(url).name]
    (server.folder / 'net.pth').unlink()
    assert_same(read_checkpoint(url), WEIGHTS)
    assert server.requests == ['/net.pth']


def test_query_belongs_to_the_address(server: Server) -> None:
    url = server.save('net.pth')
    assert cached_path(url) != cached_path(f'{url}?version=2')
    assert cached_path(f'{url}?version=2').name.endswith('-net.pth')


def test_next_mirror(server: Server) -> None:
    url = server.save('b/net.pth')
    path = download('net', (Address(f'{server.url}a/net.pth'), Address(url)), accept)
    assert path == cached_path(url)
    assert server.requests == ['/a/net.pth', '/b/net.pth']
    assert download('net', (Address(f'{server.url}a/net.pth'), Address(url)), accept) == path
    assert len(server.requests) == 2


def fails(server: Server, *addresses: Address) -> str:
    """The message of a download that must fail and leave nothing behind."""
    with pytest.raises(DownloadError) as caught:
        download('net', addresses, accept)
    assert not any(cached_path(address.url).exists() for address in addresses)
    assert not list(cache_folder().glob('*.part'))
    return str(caught.value)


def test_error_says_what_to_do(server: Server) -> None:
    first, second = f'{server.url}a/net.pth', f'{server.url}b/net.pth'
    message = fails(server, Address(first), Address(second))
    assert message.startswith("'net' could not be downloaded. Tried:")
    assert message.count('HTTP Error 404') == 2
    assert str(cache_folder()) in message
    assert 'MMVIT_HOME or TORCH_HOME' in message
    for url in (first, second):
        assert f'  {url}\n    -> {cached_path(url)}' in message
    # What the message advises works.
    torch.save(WEIGHTS, cached_path(second))
    assert download('net', (Address(first), Address(second)), accept) == cached_path(second)


def test_truncated(server: Server) -> None:
    url = server.save('net.pth')
    size = (server.folder / 'net.pth').stat().st_size
    server.cut = 0.75
    assert f'truncated, {int(0.75 * size)} of {size} bytes' in fails(server, Address(url))
    server.cut = 1.0
    assert_same(read_checkpoint(url), WEIGHTS)


def test_wrong_hash(server: Server) -> None:
    url = server.save('net.pth')
    digits = file_sha256(server.folder / 'net.pth')
    assert f'SHA-256 is {digits}, expected 01234567' in fails(server, Address(url, '01234567'))
    assert download('net', (Address(url, digits[:8]),), accept) == cached_path(url)


def test_damaged_later(server: Server) -> None:
    """A local copy that no longer has the known hash is not used, and replaced."""
    url = server.save('net.pth')
    address = Address(url, file_sha256(server.folder / 'net.pth')[:8])
    path = download('net', (address,), accept)
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    assert download('net', (address,), accept) == path
    assert_same(read_checkpoint(path), WEIGHTS)
    assert server.requests == ['/net.pth'] * 2
    path.write_bytes(b'damaged')
    server.cut = 0.5
    with pytest.raises(DownloadError, match='truncated'):
        download('net', (address,), accept)


def test_page_for_download_by_hand(server: Server) -> None:
    page = Address(f'{server.url}file/d/key/view', by_hand=True)
    message = fails(server, page)
    assert 'a page for download by hand' in message
    assert f'  {page.url}\n    -> {cached_path(page.url)}' in message
    assert server.requests == []
    cache_folder().mkdir(parents=True)
    torch.save(WEIGHTS, cached_path(page.url))
    assert download('net', (page,), accept) == cached_path(page.url)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [(b'<html>please log in</html>', 'this is a web page'), (b'', 'the file is empty')],
)
def test_no_weights(server: Server, content: bytes, problem: str) -> None:
    (server.folder / 'net.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        read_checkpoint(f'{server.url}net.pth')
    url = server.save('net.pth')
    assert_same(read_checkpoint(url), WEIGHTS)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMVIT_HOME', str(tmp_path))
    with pytest.raises(DownloadError, match='Connection refused'):
        download('net', (Address('http://127.0.0.1:9/net.pth'),), accept)


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMVIT_HOME', str(tmp_path / 'ours'))
    assert cache_folder() == tmp_path / 'ours/checkpoints'
    monkeypatch.delenv('MMVIT_HOME')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    assert cache_folder() == tmp_path / 'torch/hub/checkpoints/mmvit_backbones'


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('MMVIT_HOME', str(tmp_path / 'file'))
    with pytest.raises(DownloadError, match='Not a directory'):
        download('net', (Address('http://127.0.0.1:9/net.pth'),), accept)


def start(url: str) -> BaseProcess:
    """Start a process that reads an address."""
    process = multiprocessing.get_context('fork').Process(target=read_checkpoint, args=(url,))
    process.start()
    return process


# Python 3.12 about the server's thread, which the processes do without.
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
def test_eight_processes_download_once(server: Server) -> None:
    url = server.save('net.pth')
    server.delay = 2
    processes = [start(url) for _ in range(8)]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert server.requests == ['/net.pth']


def test_waiting_processes_share_a_failure(server: Server) -> None:
    """Else each would wait for its own time-out after that of the one before."""
    url = server.save('net.pth')
    server.cut, server.delay = 0.75, 1.0
    errors: list[str] = []

    def attempt() -> None:
        with pytest.raises(DownloadError) as caught:
            download('net', (Address(url),), accept)
        errors.append(str(caught.value))

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert all('truncated' in error for error in errors)
    assert server.requests == ['/net.pth']


@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
def test_killed_midway(server: Server) -> None:
    url = server.save('net.pth')
    server.delay = 60
    process = start(url)
    while not server.requests:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.join()
    assert not cached_path(url).exists()
    server.delay = 0
    assert_same(read_checkpoint(url), WEIGHTS)
    assert left_over() == [cached_path(url).name]


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server in the place of Hugging Face's hub."""
    from huggingface_hub import constants

    url = server.url + '{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    return server


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_hub(hub: Server, file: str) -> None:
    hub.save(f'owner/name/resolve/main/{file}')
    for _ in range(2):
        assert_same(read_checkpoint('hf-hub:owner/name'), WEIGHTS)
    assert hub.requests.count(f'/owner/name/resolve/main/{file}') == 1


def test_hub_without_such_a_repository(hub: Server) -> None:
    with pytest.raises(DownloadError, match='hf-hub:owner/gone could not be downloaded'):
        read_checkpoint('hf-hub:owner/gone')


def test_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(DownloadError, match='pip install huggingface_hub'):
        read_checkpoint('hf-hub:owner/name')
