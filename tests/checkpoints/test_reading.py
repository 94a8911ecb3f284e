"""Files: what is read, what is refused, and how the message reads."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickletools
import random as random_module
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file

from mmvit_backbones.checkpoints import CheckpointError, reading
from mmvit_backbones.checkpoints.reading import read_checkpoint, read_file
from tests.checkpoints import payloads
from tests.utils import assert_same

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


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('legacy', [False, True])
def test_plain_data_comes_back(path: Path, legacy: bool, protocol: int) -> None:
    content = {
        'scalars': [None, True, 1, -1, 2**70, 0.5, 1j, 'text', b'bytes', bytearray(b'ab')],
        'containers': [(), (1,), [], {}, {1, 2}, frozenset({1}), Counter({3: 1}), {(1, 'a'): 2}],
        'arrays': [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2), '>i4'), np.float64(0.5)],
        'history': HistoryBuffer([1.0, 2.0], [1, 1]),
        'args': argparse.Namespace(lr=0.1),
        'slice': slice(1, None, 2),
    }
    tensors = {
        'shape': torch.Size([1, 2]),
        'dtype': torch.bfloat16,
        'device': torch.device('cuda', 1),
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'view': torch.arange(12).view(3, 4)[1:, ::2].T,
        'expanded': torch.ones(1).expand(5),
        'empty': torch.empty(0, 3),
        **{str(d): torch.ones(2, dtype=d) for d in reading.STORAGES.values()},
        'scalar': torch.tensor(1.5),
    }
    if not legacy and hasattr(torch, 'uint16'):  # since torch 2.3
        tensors['uint16'] = torch.ones(2, dtype=torch.uint16)
    if protocol:  # the first has no way to name the memory of a tensor
        content |= tensors
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    read = read_file(path)
    expected = torch.load(path, weights_only=False)
    assert list(read) == list(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_same({key: read[key]}, {key: value.detach()})
            assert read[key].stride() == value.stride()
        elif key not in ('arrays', 'history'):
            assert repr(read[key]) == repr(value)
    for ours, value in zip(read['arrays'], expected['arrays'], strict=True):
        np.testing.assert_array_equal(ours, value)
        assert ours.dtype == value.dtype
    for ours, value in zip(read['history'].data, expected['history'].data, strict=True):
        np.testing.assert_array_equal(ours, value)


def test_tensors_that_share_memory_share_it_again(path: Path) -> None:
    weight = torch.zeros(3)
    torch.save({'a': weight, 'b': weight[1:]}, path)
    read = read_checkpoint(path)
    read['a'].fill_(1)
    assert read['b'].tolist() == [1, 1]


@pytest.mark.parametrize('container', payloads.CONTAINERS)
@pytest.mark.parametrize('place', payloads.PLACES)
@pytest.mark.parametrize('variable', ['', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_code_is_refused(
    tmp_path: Path, container: str, place: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, '1')
    marker = tmp_path / 'made'
    for gadget in payloads.GADGETS:
        for protocol in payloads.PROTOCOLS:
            path = payloads.write_payload(
                tmp_path / 'bad.pth', marker, container, place, gadget, protocol
            )
            with pytest.raises(CheckpointError, match=r'refused, it|neither a \.pth nor') as caught:
                read_checkpoint(path)
            assert '\n' not in str(caught.value)
            assert not marker.exists()


def test_a_user_may_trust_a_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning each time."""
    marker = path.with_name('made')
    payloads.write_payload(path, marker, 'zip', 'meta', 'reduce', 2)
    monkeypatch.setenv('MMVIT_ALLOW_UNSAFE_PICKLE', '1')
    warned: list[str] = []
    monkeypatch.setattr(reading, 'print_log', lambda text, **_: warned.append(text))
    assert read_file(path)['meta']['extra'] is None
    assert marker.exists()
    marker.rmdir()
    read_file(path)
    assert len(warned) == 2
    assert 'code in' in warned[0]


def test_getattr_reaches_methods_of_histories_only(path: Path) -> None:
    """Files of old MMEngine versions name it, for a list of `HistoryBuffer`'s methods."""

    class Method:
        def __init__(self, owner: type, name: str) -> None:
            self.args = owner, name

        def __reduce__(self) -> tuple:
            return getattr, self.args

    torch.save({'a': Method(HistoryBuffer, 'mean')}, path)
    assert not callable(read_file(path)['a'])
    for owner, name in ((HistoryBuffer, '__init__'), (argparse.Namespace, '_get_args')):
        torch.save({'a': Method(owner, name)}, path)
        with pytest.raises(CheckpointError, match='refused'):
            read_file(path)


def unsupported(kind: str) -> object:
    if kind == 'sparse':
        return torch.eye(2).to_sparse()
    if kind == 'meta':
        return torch.empty(2, device='meta')
    if kind == 'conjugated':
        return torch.ones(2, dtype=torch.complex64).conj()
    return {(((1,),),): 1}


@pytest.mark.parametrize('kind', ['sparse', 'meta', 'conjugated', 'keys that are not plain'])
def test_what_is_no_weights_is_named(path: Path, kind: str) -> None:
    torch.save({'a': unsupported(kind)}, path)
    with pytest.raises(CheckpointError, match=f'refused, it holds.*{kind}'):
        read_checkpoint(path)


def rebuilt(*args: object) -> object:
    """A tensor that a pickle makes by these arguments of torch's function."""

    class Rebuilt:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (*args, False, OrderedDict())

    return Rebuilt()


@pytest.mark.parametrize(
    ('offset', 'size', 'stride', 'problem'),
    [
        (0, (2**40,), (0,), 'more than the file'),
        (0, (2**40,), (1,), 'larger than its memory'),
        (-1, (1,), (1,), 'impossible sizes'),
        (1, (1,), (1,), 'larger than its memory'),
        (0, (2, 2), (1,), 'differ in length'),
        (0, (1.0,), (1,), 'impossible sizes'),
    ],
)
def test_views_stay_inside_their_memory(
    path: Path, offset: int, size: tuple, stride: tuple, problem: str
) -> None:
    storage = torch.ones(1, dtype=torch.uint8).untyped_storage()
    torch.save({'a': rebuilt(storage, offset, size, stride)}, path)
    with pytest.raises(CheckpointError, match=problem):
        read_checkpoint(path)


def test_small_file_cannot_unpack_to_a_large_one(path: Path) -> None:
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith('data.pkl'))
    records[name] = records[name][:-1] + b']' * (200 << 20) + b'.'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 2 << 20
    with pytest.raises(CheckpointError, match='unpacks to more than'):
        read_checkpoint(path)


def test_compressed_file(path: Path) -> None:
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert_same(read_checkpoint(path), WEIGHTS)


def test_pickle_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmvit_backbones.checkpoints import unpickling

    monkeypatch.setattr(unpickling, 'MAX_OPERATIONS', 1000)
    torch.save({'a': [[] for _ in range(1000)]}, path)
    with pytest.raises(CheckpointError, match='more than 1000 operations'):
        read_checkpoint(path)


def test_flipped_bytes_are_noticed(path: Path) -> None:
    torch.save({'a': torch.zeros(4096)}, path)
    content = bytearray(path.read_bytes())
    content[8000:12096] = bytes(255 - byte for byte in content[8000:12096])
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch itself does not look
    with pytest.raises(CheckpointError, match=r'checksum of its record data/0 is wrong'):
        read_checkpoint(path)


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


def test_mapping_that_holds_itself() -> None:
    content: dict = {}
    content['model'] = content
    with pytest.raises(CheckpointError, match='not a state dict'):
        read_checkpoint(content)


def seeds(folder: Path) -> list[bytes]:
    """Whole files of each kind, to be damaged."""
    content = {
        'state_dict': OrderedDict(WEIGHTS),
        'meta': {'epoch': 3, 'classes': ('a', 'b')},
        'history': HistoryBuffer([1.0], [1]),
        'scalar': np.float32(1),
    }
    files = []
    for protocol in range(1, 6):
        for zipped in (True, False):
            torch.save(
                content,
                folder / 'seed',
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=zipped,
            )
            files.append((folder / 'seed').read_bytes())
    with (
        zipfile.ZipFile(folder / 'seed', 'w', zipfile.ZIP_DEFLATED) as archive,
        zipfile.ZipFile(io.BytesIO(files[0])) as other,
    ):
        for name in other.namelist():
            archive.writestr(name, other.read(name))
    files.append((folder / 'seed').read_bytes())
    save_file(WEIGHTS, folder / 'seed')
    files.append((folder / 'seed').read_bytes())
    return files


def damage(content: bytes, random: random_module.Random) -> bytes:
    """Flip, cut, repeat or overwrite parts of a file; mend the checksums of half of the zips."""
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not damaged:
            break
        start = random.randrange(len(damaged))
        length = random.choice((1, 1, 2, 4, 8, 64))
        piece = bytes(damaged[start : start + length])
        change = random.randrange(6)
        if change == 0:
            piece = bytes(random.randrange(256) for _ in piece)
        elif change == 1:
            piece = random.choice((b'\x00', b'\xff', b'\x7f')) * length
        elif change == 2:
            piece = b''
        elif change == 3:
            piece *= 2
        elif change == 4 and len(damaged) > 2:
            del damaged[max(start, 1) :]
        else:
            piece = random.choice(OPERATIONS) + piece[1:]
        damaged[start : start + length] = piece
    if content.startswith(b'PK') and random.random() < 0.8:
        return mend(content, random)
    return bytes(damaged)


OPERATIONS = [bytes([ord(code)]) for code in pickletools.code2op]


def mend(content: bytes, random: random_module.Random) -> bytes:
    """Change the pickle inside a zip, whose checksum is right all the same."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, 'w') as new:
        for name in old.namelist():
            record = old.read(name)
            if name.endswith('data.pkl'):
                record = damage(b'\x80' + record[1:], random)
            new.writestr(name, record)
    return stream.getvalue()


def test_damage_of_any_kind_is_one_error(tmp_path: Path) -> None:
    """Whatever the bytes are: data, or a CheckpointError of one line that names the file."""
    random = random_module.Random(0)
    files = seeds(tmp_path)
    path = tmp_path / 'damaged.pth'
    outcomes: Counter = Counter()
    for number in range(3000):
        path.write_bytes(damage(files[number % len(files)], random))
        message = f'{path}: read'
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            message = str(error)
        assert '\n' not in message
        assert str(path) in message
        outcomes[message.split(': ')[1][:7]] += 1
    assert min(outcomes[kind] for kind in ('read', 'refused', 'truncat')) > 50, outcomes


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
