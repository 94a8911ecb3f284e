"""Read weights from files and URLs without running anything that they hold."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.rules import StateDict

WRAPPERS = ('state_dict', 'model', 'model_ema')
PREFIXES = ('module.', '_orig_mod.', 'model.')


class Placeholder:
    """Stands in for a training state's object that is not weights; ignores all it is given."""

    def __new__(cls, *_: Any) -> Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# What the authors' (DeiT-style) and MMEngine's checkpoints hold beside weights. Every name becomes
# a `Placeholder`: the real class is not even imported, so the list allows no code to run.
IGNORED = (
    'argparse.Namespace',
    'mmengine.logging.history_buffer.HistoryBuffer',
    *(
        f'numpy.{core}.multiarray.{function}'
        for core in ('core', '_core')
        for function in ('_reconstruct', 'scalar')
    ),
    'numpy.ndarray',
    'numpy.dtype',
    *(
        f'numpy.dtypes.{name}DType'
        for name in ('Bool', 'Int32', 'Int64', 'UInt32', 'UInt64', 'Float32', 'Float64')
    ),
    'builtins.getattr',  # HistoryBuffer's methods in files of old MMEngine versions
    'builtins.slice',
)


def read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any], sha256: str | None = None
) -> StateDict:
    """Read the state dict of a model.

    Args:
        source: A `.pth` or `.safetensors` file, its URL, or what such a file holds. A URL is kept
            where `torch.hub` keeps its downloads.
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
    path = find_file(source)
    content = read_file(path, sha256)
    try:
        return unwrap(content)
    except CheckpointError as error:
        raise CheckpointError(f'{_named(path)}: {error}') from None


def find_file(source: str | os.PathLike[str]) -> Path:
    """Return the path of a file or of the downloaded copy of a URL.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the download is empty or a web page.
    """
    url = urlparse(str(source))
    if url.scheme in ('http', 'https'):
        path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(url.path).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(str(source), str(path), progress=False)
            try:
                _check_start(path)
            except CheckpointError:
                path.unlink()  # else it would be taken for the file at every later try
                raise
        return path
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint {str(path)!r}')
    return path


def read_file(path: Path, sha256: str | None = None) -> Any:
    """Read what a `.pth` or `.safetensors` file holds, on the CPU; the start of it says which.

    Raises:
        CheckpointError: See `read_checkpoint`.
    """
    if not path.is_file():
        raise CheckpointError(f'{str(path)!r} is not a file')
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256.lower()):
        raise CheckpointError(f'{_named(path)}: SHA-256 is {found}, expected {sha256}')
    start = _check_start(path)
    # First: the length of its header, which stands before it, can look like the start of a pickle.
    if start[8:9] == b'{':
        return _read_safetensors(path)
    if start.startswith((b'PK', b'\x80')):
        return _read_pickle(path)
    raise CheckpointError(
        f'{_named(path)}: neither a .pth nor a .safetensors file (it starts with {start[:8]!r})'
    )


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: StateDict = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{_named(path)}: truncated or damaged ({error})') from None
    return weights


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(Placeholder, name) for name in IGNORED]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        message = str(error)
        if match := re.search(r'GLOBAL ([\w.]+)', message):
            raise CheckpointError(
                f'{_named(path)}: refused, it holds {match[1]!r}, which could run code and is no '
                'part of weights; save the state dict alone where you trust the file'
            ) from None
        cause = re.search(r'WeightsUnpickler error: (.+)', message)
        first_line = cause[1] if cause else next(iter(message.splitlines()), type(error).__name__)
        raise CheckpointError(f'{_named(path)}: truncated or damaged ({first_line})') from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unwrap(content: Any) -> StateDict:
    """Take the model's state dict out of what a checkpoint holds.

    Raises:
        CheckpointError: If there is none.
    """
    while isinstance(content, Mapping):
        inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f'no state dict but {type(content).__name__}: {str(content)[:40]}')
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
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
