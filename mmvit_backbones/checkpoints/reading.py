"""Read weights from files and URLs without running anything that they hold."""

from __future__ import annotations

import io
import logging
import os
import re
import reprlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from mmvit_backbones.checkpoints.allowed import STORAGES, Name, RefusedError, Storage
from mmvit_backbones.checkpoints.download import (
    HUB,
    Address,
    download,
    download_from_hub,
    file_sha256,
)
from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.rules import StateDict
from mmvit_backbones.checkpoints.unpickling import unpickle
from mmvit_backbones.checkpoints.zoo import close_names, find_public_file

WRAPPERS = ('state_dict', 'model', 'model_ema')
PREFIXES = ('module.', '_orig_mod.', 'model.')


# What is unpacked from a file may be so much larger than the file, and a tensor than its memory.
MAX_GROWTH = 16
MAX_UNPACKED = 64 << 20  # bytes that are always allowed
ALLOW_UNSAFE = 'MMVIT_ALLOW_UNSAFE_PICKLE'

# The number that torch.save wrote first before torch 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any], sha256: str | None = None
) -> StateDict:
    """Read the state dict of a model.

    Args:
        source: What `find_file` takes, or what such a file holds.
        sha256: Expected SHA-256 of the file, or the first digits of it.

    Returns:
        Names and tensors, out of the wrappers `state_dict`, `model` or `model_ema` and without
        prefixes such as `module.` that all names share.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, is not weights, holds objects that are not
            allowed, or has another SHA-256.
    """
    if isinstance(source, Mapping):
        return unwrap(source)
    path = find_file(source, sha256)
    content = read_file(path, sha256)
    try:
        return unwrap(content)
    except CheckpointError as error:
        raise CheckpointError(f'{_named(path)}: {error}') from None


def find_file(source: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """Return the path of a file, or of the downloaded copy of an address or a public name.

    Args:
        source: A path, a name of `list_pretrained()`, an address (http, https or file), or
            `hf-hub:<owner>/<name>`.
        sha256: Expected SHA-256 of a download, or the first digits of it.

    Raises:
        FileNotFoundError: If there is no such file or name.
        CheckpointError: If the download fails, or is empty or a web page.
    """
    text = str(source)
    if text.startswith(('http://', 'https://')):
        return download(text, (Address(text, sha256),), _check_start)
    if text.startswith(HUB):
        return download_from_hub(text.removeprefix(HUB), _check_start)
    if text.startswith('file:'):
        source = unquote(urlparse(text).path)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if public := find_public_file(text):
        return download(public.name, public.addresses, _check_start)
    raise FileNotFoundError(f'there is no checkpoint {str(path)!r}{close_names(text)}')


def read_file(path: Path, sha256: str | None = None) -> Any:
    """Read what a `.pth` or `.safetensors` file holds, on the CPU; the start of it says which.

    Tensors, NumPy arrays and numbers, MMEngine's `HistoryBuffer`, `argparse.Namespace` and Python's
    own containers and scalars are built; see `unpickling`. Checksums inside the file are checked.

    Raises:
        CheckpointError: See `read_checkpoint`.
    """
    if not path.is_file():
        raise CheckpointError(f'{str(path)!r} is not a file')
    try:
        if sha256 is not None and not (found := file_sha256(path)).startswith(sha256.lower()):
            raise CheckpointError(f'{_named(path)}: SHA-256 is {found}, expected {sha256}')
        start = _check_start(path)
        # First: the length of its header, which stands before it, can look like a pickle's start.
        if start[8:9] == b'{':
            return _read_safetensors(path)
        if start.startswith(b'PK'):
            return _read_zip(path)
        if start.startswith(b'\x80') or start[:1] in b'(]}cILN':
            return _read_legacy(path)
        if tarfile.is_tarfile(path):
            raise RefusedError('it is a .tar file, as torch wrote before version 0.2')
    except CheckpointError:
        raise
    except RefusedError as error:
        return _read_unsafely(path, error)
    except MemoryError:
        raise CheckpointError(f'{_named(path)}: it needs more memory than there is') from None
    except OSError as error:
        raise CheckpointError(f'{str(path)!r} cannot be read: {_first_line(error)}') from None
    except Exception as error:  # what damaged files make parsers raise has no common class
        raise CheckpointError(
            f'{_named(path)}: truncated or damaged ({_first_line(error)})'
        ) from None
    raise CheckpointError(
        f'{_named(path)}: neither a .pth nor a .safetensors file (it starts with {start[:8]!r})'
    )


def _read_unsafely(path: Path, reason: RefusedError) -> Any:
    """Read a refused file the unsafe way if the user says that it is to be trusted."""
    if os.environ.get(ALLOW_UNSAFE) != '1':
        raise CheckpointError(
            f'{_named(path)}: refused, {reason}; save the state dict alone, or set '
            f'{ALLOW_UNSAFE}=1 if you trust the file'
        ) from None
    print_log(
        f'{ALLOW_UNSAFE}=1: code in {str(path)!r} may run now ({reason})',
        logger='current',
        level=logging.WARNING,
    )
    return torch.load(path, map_location='cpu', weights_only=False)


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, 'strerror', None) or error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _check_start(path: Path) -> bytes:
    """Return the first bytes of a file; an error if there are none or they are a web page's."""
    with path.open('rb') as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f'{_named(path)}: the file is empty')
    if start.lstrip().startswith(b'<'):
        raise CheckpointError(f'{_named(path)}: this is a web page, not weights')
    return start


def _read_safetensors(path: Path) -> StateDict:
    # Only where such a file is met: the package itself does without safetensors.
    from safetensors.torch import load_file

    weights: StateDict = load_file(path)
    return weights


def _max_unpacked(size: int) -> int:
    return MAX_GROWTH * size + MAX_UNPACKED


class _Zip:
    """The archive that torch.save writes: `data.pkl` and one record per storage."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.unread = _max_unpacked(self.size)
        self.archive = zipfile.ZipFile(file)
        names = self.archive.namelist()
        pickles = [name for name in names if re.fullmatch(r'[^/]*/data\.pkl', name)]
        if len(pickles) != 1:
            raise ValueError('there is no data.pkl in it')
        self.folder = pickles[0].removesuffix('data.pkl')
        if f'{self.folder}constants.pkl' in names:
            raise RefusedError('it is a TorchScript archive, which is a program')
        if f'{self.folder}byteorder' in names and bytes(self.read('byteorder')) != b'little':
            raise ValueError('it was written on a big-endian machine')
        self.storages: dict[str, Tensor] = {}

    def read(self, name: str) -> np.ndarray:
        """Read a record, at most once as often as the bounds allow, and check its CRC-32."""
        info = self.archive.getinfo(self.folder + name)
        self.unread -= info.file_size
        if self.unread < 0:
            raise RefusedError(f'it unpacks to more than {MAX_GROWTH} times its size')
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise ValueError('it is encrypted or compressed in an unknown way')
        if info.compress_type == zipfile.ZIP_DEFLATED:
            with self.archive.open(info) as record:
                unpacked = bytearray(record.read(info.file_size))
                if record.read(1):
                    raise ValueError(f'its record {name} is longer than it says')
            return np.frombuffer(unpacked, np.uint8)
        self.file.seek(info.header_offset)
        header = self.file.read(30)
        if header[:4] != b'PK\x03\x04':
            raise ValueError('its directory is damaged')
        start = info.header_offset + 30 + sum(struct.unpack('<HH', header[26:30]))
        if start + info.file_size > self.size:
            raise EOFError('it ends too early')
        content = torch.empty(info.file_size, dtype=torch.uint8).numpy()  # aligned
        self.file.seek(start)
        self.file.readinto(content.data)
        # torch writes 0 where it was told to compute none.
        if info.CRC not in (0, zlib.crc32(content.data)):
            raise ValueError(f'the checksum of its record {name} is wrong')
        return content

    def find_storage(self, saved: tuple[Any, ...]) -> Storage:
        kind, key, _, count = saved
        dtype, nbytes = _storage_size(kind, count)
        if not isinstance(key, str):
            raise ValueError('a record without a name')
        if key not in self.storages:
            self.storages[key] = torch.from_numpy(self.read(f'data/{key}'))
        if self.storages[key].numel() != nbytes:
            raise ValueError(f'its record data/{key} has another size than its tensors say')
        return Storage(self.storages[key], dtype)


def _storage_size(kind: Any, count: Any) -> tuple[torch.dtype, int]:
    """Element type and bytes of a storage, from its class and number of elements."""
    name = kind.name.rpartition('.')[2] if isinstance(kind, Name) else ''
    dtype = torch.uint8 if name == 'UntypedStorage' else STORAGES[name]
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise ValueError('memory of impossible size')
    return dtype, count * torch.empty(0, dtype=dtype).element_size()


def _read_zip(path: Path) -> Any:
    with path.open('rb') as file:
        archive = _Zip(file)
        content = archive.read('data.pkl').tobytes()
        limit = _max_unpacked(archive.size)
        return unpickle(io.BytesIO(content), len(content), archive.find_storage, limit)


def _read_legacy(path: Path) -> Any:
    """Read what torch.save wrote before torch 1.6: pickles, and then the memory of all tensors."""
    size = path.stat().st_size
    storages: dict[Any, Tensor] = {}

    def find_storage(saved: tuple[Any, ...]) -> Storage:
        kind, key, _, count, view = saved
        dtype, nbytes = _storage_size(kind, count)
        if not isinstance(key, str):
            raise ValueError('memory without a name')
        if key not in storages:
            if sum(data.numel() for data in storages.values()) + nbytes > size:
                raise EOFError('it ends too early')
            storages[key] = torch.empty(nbytes, dtype=torch.uint8)
        data = storages[key]
        if data.numel() != nbytes:
            raise ValueError('its tensors disagree on the size of their memory')
        if view is not None:
            _, offset, length = view
            item = nbytes // count
            if not 0 <= offset <= offset + length <= count:
                raise ValueError('a view outside its memory')
            data = data[offset * item : (offset + length) * item]
        return Storage(data, dtype)

    with path.open('rb') as file:
        if unpickle(file, size) != LEGACY_MAGIC:
            raise RefusedError('it is a pickle that torch.save did not write')
        unpickle(file, size)  # version of the format
        if not unpickle(file, size).get('little_endian', True):
            raise ValueError('it was written on a big-endian machine')
        content = unpickle(file, size, find_storage, _max_unpacked(size))
        keys = unpickle(file, size)
        if sorted(keys) != sorted(storages):
            raise ValueError('the memory of its tensors is missing')
        for key in keys:
            data = storages[key]
            (count,) = struct.unpack('<q', file.read(8))
            if count < 0 or data.numel() % max(count, 1) or (count == 0) != (data.numel() == 0):
                raise ValueError('its tensors disagree on the size of their memory')
            if file.readinto(data.numpy().data) != data.numel():
                raise EOFError('it ends too early')
    return content


def unwrap(content: Any) -> StateDict:
    """Take the model's state dict out of what a checkpoint holds.

    Raises:
        CheckpointError: If there is none.
    """
    seen: set[int] = set()
    while isinstance(content, Mapping) and id(content) not in seen:  # it may hold itself
        seen.add(id(content))
        inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f'no state dict but {type(content).__name__}: {_short(content)}')
    others = [repr(key)[:80].strip("'") for key in content if not isinstance(content[key], Tensor)]
    if others:
        raise CheckpointError(
            f'not a state dict: no tensors under {some_of(others)} of {len(content)} keys'
        )
    weights = {str(key): value for key, value in content.items()}
    while shared := [prefix for prefix in PREFIXES if all(k.startswith(prefix) for k in weights)]:
        weights = {key.removeprefix(shared[0]): value for key, value in weights.items()}
    return weights


def _named(path: Path) -> str:
    return f'{str(path)!r} ({path.stat().st_size} bytes)'


def _short(content: Any) -> str:
    """The start of an object on one line; its whole `repr` could be endless."""
    return reprlib.repr(content)[:40].replace('\n', ' ')
