"""Checkpoints that survive a run killed at any moment.

MMEngine writes a checkpoint in place and removes the oldest one before it writes the new one: a
run killed meanwhile may be left with a truncated file, or with none that it could resume from.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmvit_backbones.registry import HOOKS

BACKEND = 'mmvit_backbones.safe_local'
UNFINISHED = '.unfinished'


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that at any moment the path has the old or the new content.

    Args:
        path: The file; its folder is made if need be.
        content: Its new content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open('wb') as file:
        file.write(content)
        file.flush()
        # Else a power cut could leave the new name on content that never reached the disk.
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@register_backend(BACKEND)
class SafeLocalBackend(LocalBackend):
    """A local disk on which files appear whole, and disappear only when `remove_except` says so.

    It is how `SafeCheckpointHook` reaches what mmengine's runner and its `CheckpointHook` do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._to_remove: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, see `write_whole`."""
        write_whole(filepath, obj)

    def remove(self, filepath: str | Path) -> None:
        """Note a file that shall go later."""
        self._to_remove.append(str(filepath))

    def remove_except(self, kept: set[str]) -> None:
        """Remove the noted files.

        Args:
            kept: Those that are needed again, having been written anew meanwhile.
        """
        for filepath in self._to_remove:
            if filepath not in kept:
                Path(filepath).unlink(missing_ok=True)
        self._to_remove.clear()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook` for runs that may be killed.

    - A checkpoint and the pointer `last_checkpoint` are written under another name and renamed.
    - An old checkpoint, the previous best one too, is removed after the new one stands.
    - At least two checkpoints are kept.
    - A work folder that was moved resumes from the checkpoint in its new place.

    What a killed run may leave behind is a file that ends in `.unfinished`, which the next run
    removes, or a best checkpoint that is no longer the best.

    Args:
        max_keep_ckpts: Latest checkpoints to keep: at least 2, or -1 for all.
        checkpoint_args: All other arguments of mmengine's `CheckpointHook`, except those that
            choose where files are stored: it is a local disk.

    Raises:
        ValueError: If `max_keep_ckpts` is out of range or another storage is chosen, and at the
            start of training, if `out_dir` is no local path or the runner is not mmengine's
            `Runner`.
    """

    # Named arguments would repeat a signature that differs between the versions of mmengine.
    def __init__(self, max_keep_ckpts: int = -1, **checkpoint_args: Any) -> None:
        if max_keep_ckpts != -1 and max_keep_ckpts < 2:
            raise ValueError(f'max_keep_ckpts must be -1 or at least 2, got {max_keep_ckpts}')
        for name in ('backend_args', 'file_client_args'):
            if checkpoint_args.get(name) is not None:
                raise ValueError(f'SafeCheckpointHook writes to a local disk and takes no {name}')
        super().__init__(
            max_keep_ckpts=max_keep_ckpts,
            backend_args={'backend': BACKEND},
            **checkpoint_args,
        )
        if self.out_dir is not None and not isinstance(
            get_file_backend(self.out_dir), LocalBackend
        ):
            raise ValueError(f'out_dir must be a folder on a local disk, got {self.out_dir!r}')

    def before_run(self, runner: Runner) -> None:
        """Let `last_checkpoint` of a moved work folder point into the folder again."""
        pointer = Path(runner.work_dir) / 'last_checkpoint'
        if self.out_dir is None and is_main_process() and pointer.is_file():
            target = Path(pointer.read_text().strip())
            moved = pointer.with_name(target.name or pointer.name)
            if moved not in (target, pointer) and moved.is_file():
                write_whole(pointer, str(moved).encode())
        barrier()

    def before_train(self, runner: Runner) -> None:
        """Clear up what a killed run has left behind."""
        if not isinstance(runner, Runner):
            raise ValueError(
                f"SafeCheckpointHook needs mmengine's Runner, got {type(runner).__name__}"
            )
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # Without the limit of mmengine's deque: for a moment there is one more.
            self.keep_ckpt_ids: deque[int] = deque(self.keep_ckpt_ids)
        self.file_backend.remove_except(set())
        if is_main_process():
            for unfinished in Path(self.out_dir).glob('*' + UNFINISHED):
                unfinished.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        limited = self.max_keep_ckpts > 0
        if limited:
            if step not in self.keep_ckpt_ids:
                self.keep_ckpt_ids.append(step)
            # With the one that is about to go: if it does not come to that, the run which resumes
            # from this checkpoint removes it.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_whole(Path(runner.work_dir) / 'last_checkpoint', str(self.last_ckpt).encode())
        while limited and len(self.keep_ckpt_ids) > self.max_keep_ckpts:
            old = Path(self.out_dir) / self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            if is_main_process():
                old.unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.remove_except({str(path) for path in best if path})
