"""A run goes on from the newest whole checkpoint, and as if it had never stopped."""

from __future__ import annotations

import functools
import itertools
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.engine.random_state import KEY
from mmvit_backbones.engine.resume import POINTER
from tests.engine.test_safe_checkpoint_hook import Killed, Scripted, checkpoints

RUNS = itertools.count()


class Dropped(BaseModel):
    """A line that draws from torch's generator, in double precision."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, width, dtype=torch.float64)

    def forward(self, x: Any, mode: str = 'tensor') -> Any:
        x = torch.stack(list(x)) if isinstance(x, (list, tuple)) else x
        out = torch.nn.functional.dropout(self.fc(x), 0.5, self.training)
        noise = random.random() + np.random.rand()
        return {'loss': (out * noise).square().mean()} if mode == 'loss' else list(out)


class Noisy(Dataset):
    """Draws from the generators of the process that loads an item, and notes what it loads."""

    loaded: list[int] = []  # noqa: RUF012

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.loaded.append(index)
        noise = random.random() + np.random.rand() + torch.rand(2, dtype=torch.float64)
        return {'x': index + noise}


def make_runner(
    work_dir: Path,
    by_epoch: bool = True,
    workers: int = 0,
    persistent: bool = True,
    sampler: str = '',
    seed: int | None = 0,
    width: int = 2,
    load_from: str | None = None,
    resume: bool = False,
    wrap: Callable[[BaseModel], Any] = lambda model: model,
    launcher: str = 'none',
    randomness: dict[str, Any] | None = None,
    hooks: Sequence[dict[str, Any]] = (),
) -> Runner:
    def loader(shuffle: bool, sampler: str = '') -> dict[str, Any]:
        default = 'DefaultSampler' if by_epoch or not shuffle else 'InfiniteSampler'
        return {
            'batch_size': 2,
            'num_workers': workers,
            'persistent_workers': persistent and workers > 0,
            'sampler': {'type': sampler or default, 'shuffle': shuffle},
            'dataset': Noisy(),
        }

    epochs = {'by_epoch': True, 'max_epochs': 4, 'val_interval': 2}
    iterations = {'by_epoch': False, 'max_iters': 10, 'val_interval': 5}
    torch.manual_seed(0)
    interval = {'interval': 1} if by_epoch else {'interval': 3, 'by_epoch': False}
    return Runner(
        model=wrap(Dropped(width)),
        work_dir=str(work_dir),
        train_dataloader=loader(True, sampler),
        train_cfg=epochs if by_epoch else iterations,
        optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.1}},
        val_dataloader=loader(False),
        val_cfg={},
        val_evaluator=[Scripted([0.1, 0.2, 0.3])],
        default_hooks={
            'sampler_seed': {'type': 'DistSamplerSeedHook'},
            'checkpoint': {'type': 'mmvit_backbones.SafeCheckpointHook', **interval},
        },
        custom_hooks=list(hooks),
        randomness=randomness or {'seed': seed},
        launcher=launcher,
        load_from=load_from,
        resume=resume,
        experiment_name=f'resume_{next(RUNS)}',  # mmengine forbids equal names
        log_level='ERROR',
    )


def train(runner: Runner) -> None:
    """Train, and end the workers, which the garbage collector would do in 5 s each."""
    try:
        runner.train()
    finally:
        for loader in (runner.train_dataloader, runner.val_dataloader):
            if loader.num_workers and loader._iterator is not None:
                loader._iterator._shutdown_workers()


class Kill(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.iteration:
            raise Killed


def train_until(runner: Runner, iteration: int) -> None:
    """Train and break off before an iteration, as SIGKILL would."""
    runner.register_hook(Kill(iteration))
    with pytest.raises(Killed):
        train(runner)


def assert_same_end(one: Path, other: Path, name: str) -> None:
    """Model, optimizer and random states of two runs are the same to the last bit."""
    ends = [torch.load(folder / name, weights_only=False) for folder in (one, other)]
    for part in ('state_dict', 'optimizer', KEY, 'param_schedulers'):
        assert_same_bits(ends[0].get(part), ends[1].get(part))


def assert_same_bits(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            assert_same_bits(ours, theirs)
    else:
        assert one == other


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of uninterrupted runs, each made once."""

    @functools.cache
    def make(by_epoch: bool, sampler: str) -> Path:
        folder = tmp_path_factory.mktemp('whole') / 'run'
        train(make_runner(folder, by_epoch, sampler=sampler))
        return folder

    return make


@pytest.mark.parametrize(
    ('by_epoch', 'kill', 'sampler', 'workers'),
    [
        (True, 9, '', 2),  # after the checkpoint of epoch 2 and its validation
        (True, 6, '', 0),  # after the checkpoint of epoch 1
        (False, 8, '', 2),  # after the checkpoint of iteration 6
        (False, 4, '', 0),  # before the first validation
        (False, 8, 'DefaultSampler', 0),  # whose data ends after 4 iterations
    ],
)
def test_resumed_run_is_bit_equal(
    whole: Callable[..., Path],
    tmp_path: Path,
    by_epoch: bool,
    kill: int,
    sampler: str,
    workers: int,
) -> None:
    """And so is one with workers to one without."""
    settings: dict[str, Any] = {'by_epoch': by_epoch, 'workers': workers, 'sampler': sampler}
    train_until(make_runner(tmp_path, **settings), kill)
    train(make_runner(tmp_path, resume=True, **settings))
    name = 'epoch_4.pth' if by_epoch else 'iter_10.pth'
    assert_same_end(whole(by_epoch, sampler), tmp_path, name)


def test_data_does_not_depend_on_workers(whole: Callable[..., Path], tmp_path: Path) -> None:
    train(make_runner(tmp_path, workers=2, persistent=False))
    assert_same_end(whole(True, ''), tmp_path, 'epoch_4.pth')


def test_seed_that_nobody_chose_is_resumed_too(tmp_path: Path) -> None:
    train(make_runner(tmp_path / 'whole', seed=None))
    (tmp_path / 'resumed').mkdir()
    for step in (1, 2):
        shutil.copy(tmp_path / f'whole/epoch_{step}.pth', tmp_path / 'resumed')
    train(make_runner(tmp_path / 'resumed', seed=None, resume=True))
    assert_same_end(tmp_path / 'whole', tmp_path / 'resumed', 'epoch_4.pth')


def test_data_of_the_past_is_not_loaded_again(tmp_path: Path) -> None:
    train_until(make_runner(tmp_path, by_epoch=False), 7)
    Noisy.loaded.clear()
    runner = make_runner(tmp_path, by_epoch=False, resume=True)
    train_until(runner, 7)  # one iteration after the checkpoint of iteration 6
    assert len(Noisy.loaded) <= 4


def test_epochs_and_images_differ_in_their_noise(tmp_path: Path) -> None:
    """Seeds repeat a run, not an image."""
    runner = make_runner(tmp_path)
    seen: list[float] = []
    step = runner.model.train_step

    def note(data: Any, **kwargs: Any) -> Any:
        seen.extend(float(x[0] % 1) for x in data['x'])
        return step(data, **kwargs)

    runner.model.train_step = note
    runner.train()
    assert len(set(seen)) == len(seen) == 32


def test_load_from_starts_anew(tmp_path: Path) -> None:
    """Weights alone are taken from a checkpoint that is not resumed."""
    train(make_runner(tmp_path / 'one'))
    runner = make_runner(tmp_path / 'two', load_from=str(tmp_path / 'one/epoch_4.pth'))
    runner.train()
    hook = next(h for h in runner.hooks if type(h).__name__ == 'SafeCheckpointHook')
    assert hook.random_states.resumed is None


# What may have happened to a work folder


def rewrite(path: Path, change: Callable[[dict], Any]) -> None:
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(255 - b for b in content[middle : middle + 4096])
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def other_model(path: Path) -> None:
    rewrite(path, lambda c: c['state_dict'].update({'fc.weight': torch.zeros(5, 2)}))


POINTERS: dict[str, Callable[[Path], Any]] = {
    'empty': lambda folder: (folder / POINTER).write_text(''),
    'garbage': lambda folder: (folder / POINTER).write_text('garbage\nin it'),
    'binary': lambda folder: (folder / POINTER).write_bytes(bytes(range(256))),
    'missing': lambda folder: (folder / POINTER).unlink(),
    'to a missing file': lambda folder: (folder / POINTER).write_text('/nowhere/epoch_9.pth'),
    'to a moved file': lambda folder: (folder / POINTER).write_text('/nowhere/epoch_4.pth'),
    'to a folder': lambda folder: (folder / POINTER).write_text(str(folder)),
}
NEWEST: dict[str, Callable[[Path], Any]] = {
    'removed': lambda path: path.unlink(),
    'cut by one byte': lambda path: cut(path, -1),
    'cut by half': lambda path: cut(path, path.stat().st_size // 2),
    'cut to nothing': lambda path: cut(path, 0),
    'of another model': other_model,
    'without meta': lambda path: rewrite(path, lambda c: c.pop('meta')),
    'with flipped bytes': flip,
    'without epoch': lambda path: rewrite(path, lambda c: c['meta'].pop('epoch')),
}


@pytest.fixture
def work_dir(whole: Callable[..., Path], tmp_path: Path) -> Path:
    """A moved copy of a finished run."""
    return shutil.copytree(whole(True, ''), tmp_path / 'moved')


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the logger was given, from `WARNING` on."""
    found: list[str] = []
    handle = MMLogger.callHandlers

    def note(self: MMLogger, record: Any) -> None:
        if record.levelno >= 30:
            found.append(record.getMessage())
        handle(self, record)

    monkeypatch.setattr(MMLogger, 'callHandlers', note)
    monkeypatch.setattr(MMLogger, 'isEnabledFor', lambda *_: True)
    return found


def resumed_epoch(work_dir: Path) -> int:
    """The epoch that a run in the folder goes on from."""
    runner = make_runner(work_dir, resume=True)
    runner.train_loop.run = lambda: None
    runner.train()
    return runner.epoch


@pytest.mark.parametrize('kind', POINTERS)
def test_damaged_pointer(work_dir: Path, kind: str) -> None:
    POINTERS[kind](work_dir)
    assert resumed_epoch(work_dir) == 4
    assert (work_dir / POINTER).read_text() == str(work_dir / 'epoch_4.pth')


@pytest.mark.parametrize('kind', NEWEST)
def test_damaged_newest_checkpoint(work_dir: Path, kind: str, warnings: list[str]) -> None:
    newest = work_dir / 'epoch_4.pth'
    NEWEST[kind](newest)
    assert resumed_epoch(work_dir) == 3
    named = [text for text in warnings if 'passed over' in text and str(newest) in text]
    assert len(named) == (kind != 'removed')


@pytest.mark.parametrize('kind', [kind for kind in NEWEST if kind != 'removed'])
def test_named_file_that_is_damaged(work_dir: Path, kind: str) -> None:
    newest = work_dir / 'epoch_4.pth'
    NEWEST[kind](newest)
    runner = make_runner(work_dir, resume=True, load_from=str(newest))
    with pytest.raises(CheckpointError) as caught:
        runner.train()
    assert str(newest) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_nothing_whole_is_left(work_dir: Path) -> None:
    for name in checkpoints(work_dir):
        cut(work_dir / name, 100)
    with pytest.raises(CheckpointError, match=r'no checkpoint in .*\(4 .*start anew') as caught:
        train(make_runner(work_dir, resume=True))
    assert '\n' not in str(caught.value)


def test_nothing_to_resume_starts_anew(tmp_path: Path) -> None:
    tmp_path.joinpath(POINTER).write_text('/nowhere/epoch_1.pth')
    train(make_runner(tmp_path, resume=True))
    assert len(checkpoints(tmp_path)) == 4


def test_older_longer_run_in_the_same_folder(work_dir: Path) -> None:
    """The pointer says which files are the latest run's."""
    (work_dir / POINTER).write_text(str(work_dir / 'epoch_2.pth'))
    (work_dir / 'epoch_2.pth').touch()
    assert resumed_epoch(work_dir) == 2
    cut(work_dir / 'epoch_2.pth', 100)
    assert resumed_epoch(work_dir) == 1


def test_killed_before_the_pointer_was_written(work_dir: Path) -> None:
    (work_dir / POINTER).write_text(str(work_dir / 'epoch_3.pth'))
    (work_dir / 'epoch_4.pth').touch()
    assert resumed_epoch(work_dir) == 4
