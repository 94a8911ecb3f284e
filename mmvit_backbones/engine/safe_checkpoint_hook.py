"""Checkpoints that survive a run killed at any moment.

MMEngine writes a checkpoint in place and removes the oldest one before it writes the new one: a
run killed meanwhile may be left with a truncated file, or with none that it could resume from.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, Runner

from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.engine.finite_loss_hook import check_weights
from mmvit_backbones.engine.fully_shard_hook import gather, is_sharded
from mmvit_backbones.engine.random_state import RandomStates
from mmvit_backbones.engine.resume import POINTER, check_resumable, find_resumable
from mmvit_backbones.registry import HOOKS

BACKEND = 'mmvit_backbones.safe_local'
UNFINISHED = '.unfinished'


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file so that at any moment the path has the old or the new content.

    Args:
        path: The file; its folder is made if need be.
        content: Its new content.

    Raises:
        OSError: If the disk is full, a quota is reached, or the folder cannot be written to.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open('wb') as file:
            file.write(content)
            file.flush()
            # Else a power cut could leave the new name on content that never reached the disk.
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f'not written ({error.strerror}), earlier checkpoints stay', str(path)
            ) from None
        raise


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
    - Weights that are not finite are not saved.
    - To resume means the newest checkpoint that is whole and of this model, wherever the work
      folder stands now. Newer ones that are not are named in a warning.
    - A resumed run repeats the uninterrupted one, see `random_state`.

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
        CheckpointError: At the start of training, if there are checkpoints to resume from and none
            is whole and of this model.
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
        self.random_states = RandomStates()
        self._saved_ranks: list[dict[str, Any]] | None = None
        self._gathered: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from."""
        is_training = isinstance(getattr(runner, '_train_loop', None), BaseLoop)
        if not is_training or not runner._resume:
            return
        problem = ['']
        if is_main_process():
            try:
                self._choose_checkpoint(runner)
            except (CheckpointError, OSError) as error:
                problem = [str(error)]
        broadcast_object_list(problem)  # else the other processes would wait for this one
        if problem[0]:
            raise CheckpointError(problem[0])

    def _choose_checkpoint(self, runner: Runner) -> None:
        if runner._load_from is not None:
            check_resumable(runner._load_from, runner.model)
            return
        work_dir = Path(runner.work_dir)
        out_dir = work_dir if self.out_dir is None else Path(self.out_dir) / work_dir.name
        path = find_resumable(work_dir, out_dir, self.filename_tmpl, runner.model)
        if path is not None:
            write_whole(work_dir / POINTER, str(path).encode())  # where mmengine looks
            return
        (work_dir / POINTER).unlink(missing_ok=True)
        runner.logger.warning(f'There is no checkpoint in {out_dir}: training starts anew.')

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
        self.random_states.start(runner)

    def before_val(self, runner: Runner) -> None:
        """Keep validation from changing the random numbers of training."""
        self.random_states.enter_val()

    def after_val(self, runner: Runner) -> None:
        """Go on with training's random numbers."""
        self.random_states.leave_val()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the random states of all ranks, and the whole of what is sharded."""
        checkpoint.update({key: self._gathered[key] for key in self._gathered if key in checkpoint})
        ranks = self._saved_ranks or self.random_states.before_val
        if ranks is not None:
            self.random_states.save(runner, checkpoint, ranks)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the random states of a run that goes on."""
        if runner._resume:
            self.random_states.load(checkpoint)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        check_weights(runner.model)
        self._saved_ranks = self.random_states.gather()
        self._gather(runner)
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
        self._saved_ranks = None
        self._gathered = {}
        if is_main_process():
            write_whole(Path(runner.work_dir) / POINTER, str(self.last_ckpt).encode())
        while limited and len(self.keep_ckpt_ids) > self.max_keep_ckpts:
            old = Path(self.out_dir) / self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            if is_main_process():
                old.unlink(missing_ok=True)

    def _gather(self, runner: Runner) -> None:
        """Gather what is sharded; in all processes, since the first alone writes a checkpoint."""
        if is_sharded(runner.model):
            self._gathered = gather(
                {
                    'state_dict': runner.model.state_dict(),
                    'optimizer': runner.optim_wrapper.state_dict(),
                }
            )

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best:
            self._gather(runner)
        super()._save_best_checkpoint(runner, metrics)
        self._gathered = {}
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.remove_except({str(path) for path in best if path})
