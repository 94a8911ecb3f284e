"""Which checkpoint a run continues from: the newest that is whole and belongs to the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.mmengine_loader import load_from_path

POINTER = 'last_checkpoint'  # MMEngine's file with the path of the newest checkpoint


def find_resumable(work_dir: Path, out_dir: Path, template: str, model: nn.Module) -> Path | None:
    """Return the newest checkpoint that a run can continue from, and warn about newer ones.

    Args:
        work_dir: Folder of the run, with the pointer to its newest checkpoint.
        out_dir: Folder of the checkpoints.
        template: Their file name with `{}` for the number of epochs or iterations.
        model: The model that shall go on.

    Returns:
        The path; None if there is no checkpoint at all.

    Raises:
        CheckpointError: If there are checkpoints and none of them can be used.
    """
    problems = []
    for path in _newest_first(_pointed(work_dir), out_dir, template):
        try:
            check_resumable(path, model)
        except (CheckpointError, FileNotFoundError) as error:
            problems.append(str(error))
            print_log(f'passed over: {error}', logger='current', level=30)
        else:
            return path
    if problems:
        raise CheckpointError(
            f'no checkpoint in {str(out_dir)!r} can be resumed ({some_of(problems)}): name another '
            'by --resume FILE, or start anew without --resume'
        )
    return None


def check_resumable(path: str | Path, model: nn.Module) -> None:
    """Check that a checkpoint is whole, a training state, and of this model.

    Args:
        path: File or URL.
        model: The model that shall go on.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is not as it should be.
    """
    problem = _why_not_resumable(load_from_path(str(path)), model)
    if problem:
        raise CheckpointError(f'{str(path)!r} cannot be resumed: {problem}')


def _why_not_resumable(content: Any, model: nn.Module) -> str:
    if not isinstance(content, dict):
        return f'it holds no training state but {type(content).__name__}'
    for key, names in (('meta', ('epoch', 'iter')), ('state_dict', ()), ('message_hub', ())):
        part = content.get(key)
        if not isinstance(part, dict):
            return f'it has no {key!r}, so it is no training state'
        missing = [name for name in names if not isinstance(part.get(name), int)]
        if missing:
            return f'its {key!r} does not say {" and ".join(missing)}'
    given = {
        str(key).removeprefix('module.'): value.shape if isinstance(value, Tensor) else None
        for key, value in content['state_dict'].items()
    }
    inner: Any = model.module if is_model_wrapper(model) else model
    wanted = {key: value.shape for key, value in inner.state_dict().items()}
    others = [key for key in {**wanted, **given} if given.get(key) != wanted.get(key)]
    if others:
        return f'it is of another model, of {len(wanted)} tensors {some_of(others)} differ'
    return ''


def _pointed(work_dir: Path) -> str:
    """The file name that the pointer holds; `''` if it holds none."""
    try:
        return Path((work_dir / POINTER).read_text(encoding='utf-8').strip()).name
    except (OSError, ValueError):
        return ''


def _newest_first(pointed: str, folder: Path, template: str) -> Iterator[Path]:
    """Checkpoints of a folder, those of the latest run first.

    The pointer tells the latest run's files from those that an older, longer run left in the same
    folder. A killed run may have written a newer checkpoint and not yet the pointer.
    """
    before, _, after = template.partition('{}')
    pattern = re.compile(re.escape(before) + r'(\d+)' + re.escape(after))
    steps = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := pattern.fullmatch(path.name)) and path.is_file()
    }
    order = sorted(steps, reverse=True)
    match = pattern.fullmatch(pointed)
    if match and int(match[1]) in steps:
        last = int(match[1])
        time = steps[last].stat().st_mtime
        stale = [step for step in order if step > last and steps[step].stat().st_mtime < time]
        order = [step for step in order if step not in stale] + stale
    return iter(steps[step] for step in order)
