"""Damage files at random and read them: data, or one error, and no code is run.

python -m tests.checkpoints.fuzz --minutes 30 --seed 1
"""

from __future__ import annotations

import argparse
import io
import itertools
import pickletools
import random as random_module
import tempfile
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.reading import read_checkpoint
from tests.checkpoints import payloads

WEIGHTS = {'a.weight': torch.arange(6.0).view(2, 3), 'a.bias': torch.ones(2)}


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


def harmful_seeds(folder: Path, marker: Path) -> list[bytes]:
    """Whole files with code in them that would make the folder `marker`."""
    choices = itertools.product(('zip', 'legacy', 'plain'), payloads.GADGETS, payloads.PROTOCOLS)
    return [
        payloads.write_payload(
            folder / 'seed', marker, container, 'meta', gadget, protocol
        ).read_bytes()
        for container, gadget, protocol in choices
    ]


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


def fuzz(folder: Path, seed: int, turns: Iterable[object]) -> Counter:
    """Damage and read one file in each turn.

    Args:
        folder: For the files.
        seed: Of the damage.
        turns: One entry for each file.

    Returns:
        How many files ended in which way: `'read'`, or the start of the error.

    Raises:
        AssertionError: If an error is not one line with the file's name, or code was run.
        Exception: What the reader raised, if it was no `CheckpointError`.
    """
    random = random_module.Random(seed)
    marker = folder / 'made'
    kinds = (seeds(folder), harmful_seeds(folder, marker))
    path = folder / 'damaged.pth'
    outcomes: Counter = Counter()
    for _ in turns:
        path.write_bytes(damage(random.choice(random.choice(kinds)), random))
        message = f'{path}: read'
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            message = str(error)
        assert '\n' not in message, message
        assert str(path) in message, message
        assert not marker.exists()
        outcomes[message.split(': ')[1].split(',')[0].split(' (')[0][:24]] += 1
    return outcomes


def until(end: float) -> Iterable[int]:
    """Count until a time is reached."""
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz(Path(folder), arguments.seed, until(end))
    print(f'{sum(outcomes.values())} files: {dict(outcomes)}')


if __name__ == '__main__':
    main()
