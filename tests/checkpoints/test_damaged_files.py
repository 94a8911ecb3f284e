"""Files that are damaged, or made to harm: one error, in little time and memory."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.reading import read_checkpoint
from tests.checkpoints.fuzz import WEIGHTS, fuzz


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'weights.pth'


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


def test_mapping_that_holds_itself() -> None:
    content: dict = {}
    content['model'] = content
    with pytest.raises(CheckpointError, match='not a state dict'):
        read_checkpoint(content)


def test_damage_of_any_kind_is_one_error(tmp_path: Path) -> None:
    """Whatever the bytes are: data, or a CheckpointError of one line that names the file."""
    outcomes = fuzz(tmp_path, seed=0, turns=range(3000))
    kinds = ('read', 'refused', 'truncated or damaged')
    assert min(outcomes[kind] for kind in kinds) > 10, outcomes


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
