"""Write weights to files: converted ones, and checkpoints cleaned for publication."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmvit_backbones.checkpoints.converting import Conversion, convert
from mmvit_backbones.checkpoints.download import file_sha256
from mmvit_backbones.checkpoints.reading import find_file, read_file, unwrap
from mmvit_backbones.checkpoints.rules import StateDict

PICKLES = ('.pth', '.pt')
SAFETENSORS = '.safetensors'
HASH_DIGITS = 8


def convert_file(
    source: str, destination: str, to: str = 'ours', arch: str | None = None
) -> tuple[Path, Conversion]:
    """Convert a checkpoint to the names of another source.

    Args:
        source: What `load_checkpoint` takes, but a state dict.
        destination: Path; `.safetensors` is added if it has no suffix. A `.pth` file holds the
            weights under `state_dict` and keeps `meta`, such as the names of the classes.
        to: See `convert_state_dict`.
        arch: The architecture that the weights must have; None to accept any.

    Returns:
        The file written, and what was done.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If the suffix is not known, or see `convert_state_dict`.
    """
    path = _checked_destination(destination)
    content = read_file(find_file(source))
    conversion = convert(unwrap(content), arch, to)
    _write(path, conversion.state_dict, _meta(content))
    return path, conversion


def publish_file(source: str, destination: str) -> Path:
    """Keep the weights and `meta` of a checkpoint alone, and put a hash into the file's name.

    What is left out: optimizer, schedules, message hub, the second copy of the weights that
    averaging keeps.

    Args:
        source: What `load_checkpoint` takes, but a state dict.
        destination: Path, to whose stem a hyphen and the first 8 digits of the file's SHA-256 are
            added; `.pth` is added if it has no suffix.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If the suffix is not known or the source is not weights.
    """
    path = _checked_destination(destination, default=PICKLES[0])
    content = read_file(find_file(source))
    _write(path, unwrap(content), _meta(content))
    digits = file_sha256(path)[:HASH_DIGITS]
    return path.rename(path.with_name(f'{path.stem}-{digits}{path.suffix}'))


def _checked_destination(destination: str, default: str = SAFETENSORS) -> Path:
    path = Path(destination)
    if not path.suffix:
        path = path.with_suffix(default)
    if path.suffix not in (*PICKLES, SAFETENSORS):
        raise ValueError(f'destination must end in .safetensors, .pth or .pt, got {destination!r}')
    return path


def _write(path: Path, state_dict: StateDict, meta: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copies: views into larger or shared memory would be saved with all of it, or not at all.
    weights = {key: value.detach().clone().contiguous() for key, value in state_dict.items()}
    if path.suffix == SAFETENSORS:
        save_file(weights, path, metadata={'format': 'pt'})
    else:
        torch.save({'state_dict': weights, 'meta': meta}, path)


def _meta(content: Any) -> dict[str, Any]:
    """What a checkpoint says about itself, as far as it is plain data."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return {}
    return {key: value for key, value in meta.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))
