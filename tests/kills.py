"""Kill training runs, resume them, and check that each ends as a run that nobody killed.

Each run is the own `tools/train.py` of mmdet, mmseg or mmpretrain on a shapes config, in a process
of its own. SIGKILL ends it: half of the times while it writes a checkpoint, else in training. The
processes are forked from one that has imported the toolkit, which takes longer than a run.

    python -m tests.kills mmdet mmseg mmpretrain --kills 30
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by optimizers: each process would import it anew
from mmengine.model import BaseModel

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.reading import read_file
from mmvit_backbones.datasets import write_shapes
from mmvit_backbones.engine.random_state import KEY

ROOT = Path(__file__).parents[1]
COMPARED = ('state_dict', 'optimizer', 'param_schedulers', KEY)
SIZE = 64, 80  # height and width of the images
WRITING, TRAINING = 'while writing', 'in training'
MOMENTS = {WRITING: 14, TRAINING: 7}  # the latest, of those that a run has
MAX_DELAY = 0.1  # seconds from the start of an iteration to a kill in training

EPOCHS = 'train_cfg = dict(max_epochs=3, val_interval=2)\nlast = "epoch_3.pth"\n'
CONFIGS = {
    'mmdet': (
        'retinanet_twins-svt-toy_fpn_shapes',
        EPOCHS
        + """
crop = dict(type='RandomCrop', crop_size=(48, 48), allow_negative_crop=True)
pipeline = _base_.train_pipeline
pipeline.insert(3, crop)
model = dict(backbone=dict(drop_path_rate=0.2), test_cfg=dict(max_per_img=2, score_thr=0.0))
default_hooks = dict(checkpoint=dict(interval=1))
""",
    ),
    'mmseg': (
        'xcit-toy_sem-fpn_shapes',
        """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=9, val_interval=4)
last = 'iter_9.pth'
pipeline = _base_.train_pipeline
pipeline.insert(3, dict(type='PhotoMetricDistortion'))
model = dict(data_preprocessor=dict(size=(80, 80)), backbone=dict(drop_path_rate=0.2))
default_hooks = dict(checkpoint=dict(interval=3))
""",
    ),
    'mmpretrain': (
        'xcit-toy_cls_shapes',
        EPOCHS
        + """
pipeline = _base_.train_pipeline
model = dict(backbone=dict(drop_path_rate=0.2))
default_hooks = dict(checkpoint=dict(interval=1))
""",
    ),
}
# No file but the log and the checkpoints, and data that every run reads in the same way.
COMMON = """
for step in (*pipeline, *_base_.test_pipeline):
    if step['type'] == 'Resize':
        step['scale'] = (80, 64)
loader = dict(num_workers=workers, persistent_workers=workers > 0)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=pipeline), **loader)
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline), **loader)
test_dataloader = val_dataloader
visualizer = dict(vis_backends=[])
log_level = 'WARNING'
"""


@dataclass
class Death:
    """When a process ends itself by SIGKILL.

    Attributes:
        kind: While writing a checkpoint, or in training.
        moment: Which of the moments of this kind, from 1.
        delay: Seconds from the start of an iteration.
    """

    kind: str
    moment: int
    delay: float = 0.0

    def arm(self) -> None:
        """Let this process die at the moment."""
        if self.kind == WRITING:
            os.fsync = self.during_sync
            os.replace = self.around(os.replace)
            Path.unlink = self.around(Path.unlink)
        else:
            BaseModel.train_step = self.around_step(BaseModel.train_step)

    def passes(self) -> bool:
        """Count a moment; whether it is the last."""
        self.moment -= 1
        return self.moment == 0

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def during_sync(self, number: int) -> None:
        """Leave half of the file."""
        if self.passes():
            os.ftruncate(number, os.fstat(number).st_size // 2)
            self.strike()

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Die before or after a function."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.passes():
                self.strike()
            result = function(*args, **kwargs)
            if self.passes():
                self.strike()
            return result

        return call

    def around_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Die soon after the start of an iteration."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.passes():
                threading.Timer(self.delay, self.strike).start()
            return step(*args, **kwargs)

        return call


class Runs:
    """Training runs of one toolkit.

    Args:
        toolkit: `'mmdet'`, `'mmseg'` or `'mmpretrain'`.
        folder: For data, configs, logs and checkpoints.
    """

    def __init__(self, toolkit: str, folder: Path) -> None:
        package = Path(importlib.import_module(toolkit).__path__[0])
        importlib.import_module(f'{toolkit}.apis')
        self.tool = package / '.mim/tools/train.py'
        self.folder = folder
        write_shapes(folder / 'data/shapes', train=6, val=2, size=SIZE)
        name, changes = CONFIGS[toolkit]
        for workers in (0, 2):
            (folder / f'workers_{workers}.py').write_text(
                f'_base_ = [{str(ROOT / "configs/shapes" / name)!r} + ".py"]\n'
                f'workers = {workers}\n{changes}{COMMON}'
            )
        self.last = changes.split('last = ')[1].splitlines()[0].strip('\'"')

    def run(self, name: str, workers: int, resume: bool = False, death: Death | None = None) -> int:
        """Train in a process of its own and return its exit status."""
        process = os.fork()
        if process == 0:
            self._train(name, workers, resume, death)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _train(self, name: str, workers: int, resume: bool, death: Death | None) -> None:
        status = 1
        try:
            log = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(1, 'w')
            warnings.simplefilter('default')  # not as errors, if tests started this process
            os.chdir(self.folder)
            sys.argv = [str(self.tool), f'workers_{workers}.py', '--work-dir', name]
            sys.argv += ['--resume'] * resume
            if death is not None:
                death.arm()
            runpy.run_path(str(self.tool), run_name='__main__')
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def log(self, name: str) -> Path:
        return self.folder / f'{name}.log'

    def end(self, name: str) -> Any:
        """What is compared of the last checkpoint of a run."""
        content = read_file(self.folder / name / self.last)
        return [content.get(key) for key in COMPARED]

    def unreadable(self, name: str) -> list[str]:
        """Names of checkpoints of a run that are not whole."""
        bad = []
        for path in (self.folder / name).glob('*.pth'):
            try:
                read_file(path)
            except CheckpointError:
                bad.append(path.name)
        return bad


def same(one: Any, other: Any) -> bool:
    """Whether two structures hold the same bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def kill_runs(
    runs: Runs,
    kills: int,
    kills_per_run: int = 2,
    seed: int = 0,
    num_workers: Sequence[int] = (0, 2),
) -> Counter:
    """Kill runs, resume each until it ends, and compare.

    Args:
        runs: The runs.
        kills: How many kills, half of them while a checkpoint is written.
        kills_per_run: How many of them may strike one run.
        seed: Of the moments.
        num_workers: Worker processes that load data, in turn.

    Returns:
        How many kills of each kind struck, how many runs there were, how many resumptions failed,
        how many checkpoints were not whole, how many runs ended with the same bits.
    """
    choose = random.Random(seed)
    for workers in num_workers:
        if runs.run(f'whole_{workers}', workers) != 0:
            raise RuntimeError(runs.log(f'whole_{workers}').read_text())
    expected, *others = (runs.end(f'whole_{workers}') for workers in num_workers)
    found = Counter(same_for_all_workers=int(all(same(expected, other) for other in others)))
    while found[WRITING] + found[TRAINING] < kills:
        name = f'run_{found["runs"]}'
        workers = num_workers[found['runs'] % len(num_workers)]
        found['runs'] += 1
        struck = 0
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            death = None
            if struck < kills_per_run and found[WRITING] + found[TRAINING] < kills:
                kind = WRITING if found[WRITING] <= found[TRAINING] else TRAINING
                delay = choose.random() * MAX_DELAY
                death = Death(kind, choose.randint(1, MOMENTS[kind]), delay)
            resume = (runs.folder / name).exists()
            status = runs.run(name, workers, resume, death)
            found['resumed'] += resume
            if status == -signal.SIGKILL:
                assert death is not None
                found[death.kind] += 1
                struck += 1
            found['unreadable'] += len(runs.unreadable(name))
        if status == 0:
            found['ended with the same bits'] += same(expected, runs.end(name))
        else:
            found['failed'] += 1
            print(runs.log(name).read_text())
        shutil.rmtree(runs.folder / name)
        print(dict(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('toolkits', nargs='+', choices=CONFIGS)
    parser.add_argument('--kills', type=int, default=30, help='in each toolkit')
    parser.add_argument('--kills-per-run', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    failed = False
    for toolkit in arguments.toolkits:
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            found = kill_runs(
                Runs(toolkit, Path(folder)),
                arguments.kills,
                arguments.kills_per_run,
                arguments.seed,
            )
        print(f'{toolkit}: {dict(found)}, {time.time() - start:.0f} s', flush=True)
        failed |= found['ended with the same bits'] != found['runs'] or found['unreadable'] > 0
        failed |= not found['same_for_all_workers']
    sys.exit(failed)


if __name__ == '__main__':
    main()
