"""A run killed at any moment leaves whole checkpoints that it can resume from."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmvit_backbones.engine import NonFiniteError, safe_checkpoint_hook
from mmvit_backbones.engine.safe_checkpoint_hook import SafeCheckpointHook, write_whole

RUNS = itertools.count()


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` may catch it."""


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, mode: str = 'tensor') -> Any:
        out = self.fc(torch.stack(list(x)) if isinstance(x, (list, tuple)) else x)
        return {'loss': out.square().mean()} if mode == 'loss' else [{'out': y} for y in out]


class Points(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {'x': torch.tensor([float(index), 1.0])}


class Scripted(BaseMetric):
    """Return given scores, one an evaluation."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {'acc': next(self.scores)}


def make_runner(
    work_dir: Path, epochs: int = 4, resume: bool = False, scores: tuple = (), **hook: Any
) -> Runner:
    loader = {
        'batch_size': 2,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': Points(),
    }
    validation: dict[str, Any] = {}
    if scores:
        validation = {
            'val_dataloader': loader,
            'val_cfg': {},
            'val_evaluator': Evaluator([Scripted(list(scores))]),
        }
    checkpoint = {'type': 'mmvit_backbones.SafeCheckpointHook', 'interval': 1, **hook}
    torch.manual_seed(0)
    return Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.1}},
        default_hooks={'checkpoint': checkpoint},
        resume=resume,
        randomness={'seed': 0},
        experiment_name=f'safe_checkpoint_{next(RUNS)}',  # mmengine forbids equal names
        log_level='ERROR',
        **validation,
    )


def checkpoints(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.iterdir() if '.pth' in path.name)


def pointed(work_dir: Path) -> Path:
    return Path((work_dir / 'last_checkpoint').read_text())


def test_is_registered_for_every_toolkit() -> None:
    assert HOOKS.get('mmvit_backbones.SafeCheckpointHook') is SafeCheckpointHook


@pytest.mark.parametrize('count', [0, 1, -2])
def test_keeps_at_least_two(count: int) -> None:
    with pytest.raises(ValueError, match='max_keep_ckpts must be -1 or at least 2'):
        SafeCheckpointHook(max_keep_ckpts=count)


@pytest.mark.parametrize(
    'arguments',
    [
        {'backend_args': {'backend': 'petrel'}},
        {'file_client_args': {'backend': 'disk'}},
        {'out_dir': 'http://host/folder'},
    ],
)
def test_refuses_other_storage(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='local disk'):
        SafeCheckpointHook(**arguments)


def test_refuses_other_runners() -> None:
    with pytest.raises(ValueError, match="mmengine's Runner"):
        SafeCheckpointHook().before_train(object())


def test_keeps_the_latest(tmp_path: Path) -> None:
    make_runner(tmp_path, epochs=4, max_keep_ckpts=2).train()
    assert checkpoints(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']
    assert pointed(tmp_path) == tmp_path / 'epoch_4.pth'


def test_keeps_all_by_default(tmp_path: Path) -> None:
    make_runner(tmp_path, epochs=4).train()
    assert len(checkpoints(tmp_path)) == 4


@pytest.mark.parametrize('moment', ['before rename', 'after rename', 'before removal'])
def test_killed_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """At each step of the third save: old checkpoints stand, and a resumed run ends the same."""
    whole = tmp_path / 'whole'
    make_runner(whole, max_keep_ckpts=2).train()

    killed = tmp_path / 'killed'
    rename = safe_checkpoint_hook.os.replace
    unlink = Path.unlink

    def replace(source: Path, target: Path) -> None:
        if target.name == 'epoch_3.pth' and moment == 'before rename':
            raise Killed
        rename(source, target)
        if target.name == 'epoch_3.pth' and moment == 'after rename':
            raise Killed

    def remove(self: Path, missing_ok: bool = False) -> None:
        if self.name == 'epoch_1.pth' and moment == 'before removal':
            raise Killed
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(safe_checkpoint_hook.os, 'replace', replace)
        patch.setattr(Path, 'unlink', remove)
        with pytest.raises(Killed):
            make_runner(killed, max_keep_ckpts=2).train()

    left = checkpoints(killed)
    assert left[:2] == ['epoch_1.pth', 'epoch_2.pth']
    assert ('epoch_3.pth' in left) == (moment != 'before rename')
    assert pointed(killed).name == f'epoch_{3 if moment == "before removal" else 2}.pth'
    for name in left:
        if name.endswith('.pth'):
            torch.load(killed / name, weights_only=False)

    make_runner(killed, resume=True, max_keep_ckpts=2).train()
    assert checkpoints(killed) == ['epoch_3.pth', 'epoch_4.pth']
    states = [torch.load(d / 'epoch_4.pth', weights_only=False) for d in (whole, killed)]
    torch.testing.assert_close(states[1]['state_dict'], states[0]['state_dict'], rtol=0, atol=0)
    assert states[1]['meta']['epoch'] == 4


def test_really_killed_while_writing(tmp_path: Path) -> None:
    """SIGKILL with half of the file written."""
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')
    script = f"""
        import os, signal
        from mmvit_backbones.engine import NonFiniteError, safe_checkpoint_hook
        safe_checkpoint_hook.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        safe_checkpoint_hook.write_whole({str(path)!r}, b'new' * 1000)
    """
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b'old'
    write_whole(path, b'newest')
    assert path.read_bytes() == b'newest'


def test_best_checkpoint_is_removed_after_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = safe_checkpoint_hook.os.replace
    standing = []

    def replace(source: Path, target: Path) -> None:
        rename(source, target)
        if target.name.startswith('best'):
            standing.append([n for n in checkpoints(tmp_path) if n.startswith('best')])

    monkeypatch.setattr(safe_checkpoint_hook.os, 'replace', replace)
    scores = (0.1, 0.3, 0.2, 0.4)
    make_runner(tmp_path, scores=scores, save_best='acc', max_keep_ckpts=2).train()
    assert standing == [
        ['best_acc_epoch_1.pth'],
        ['best_acc_epoch_1.pth', 'best_acc_epoch_2.pth'],
        ['best_acc_epoch_2.pth', 'best_acc_epoch_4.pth'],
    ]
    assert checkpoints(tmp_path) == ['best_acc_epoch_4.pth', 'epoch_3.pth', 'epoch_4.pth']


def test_best_checkpoint_of_the_same_name_stays(tmp_path: Path) -> None:
    """A run resumed before a validation writes the same best checkpoint again."""
    hook = SafeCheckpointHook(save_best='acc')
    runner = make_runner(tmp_path, epochs=1, scores=(0.5,), save_best='acc')
    runner.train()
    hook.before_train(runner)
    hook._save_best_checkpoint(runner, {'acc': 0.6})
    assert 'best_acc_epoch_1.pth' in checkpoints(tmp_path)


def test_moved_work_folder_resumes(tmp_path: Path) -> None:
    make_runner(tmp_path / 'old', epochs=2, max_keep_ckpts=2).train()
    shutil.move(tmp_path / 'old', tmp_path / 'new')
    runner = make_runner(tmp_path / 'new', epochs=3, resume=True, max_keep_ckpts=2)
    runner.train()
    assert checkpoints(tmp_path / 'new') == ['epoch_2.pth', 'epoch_3.pth']
    assert pointed(tmp_path / 'new') == tmp_path / 'new' / 'epoch_3.pth'
    assert not (tmp_path / 'old').exists()


def test_unfinished_files_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / 'epoch_7.pth.unfinished'
    leftover.write_bytes(b'half')
    make_runner(tmp_path, epochs=1).train()
    assert not leftover.exists()


# Nothing half written


def limit_file_size() -> None:
    """A quota: a file of this process may have 1,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize('obstacle', ['quota', 'no folder', 'full disk'])
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')
    content = b'new' * 1000
    if obstacle == 'quota':
        script = f"""
            from tests.engine.test_safe_checkpoint_hook import limit_file_size, write_whole
            limit_file_size()
            write_whole({str(path)!r}, {content!r})
        """
        done = subprocess.run(
            [sys.executable, '-c', textwrap.dedent(script)],
            check=False,
            text=True,
            stderr=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        )
        assert 'not written (File too large), earlier checkpoints stay' in done.stderr
    elif obstacle == 'full disk':

        def full(fd: int) -> None:
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(safe_checkpoint_hook.os, 'fsync', full)
        with pytest.raises(OSError, match=r'not written \(No space left.*epoch_1\.pth') as caught:
            write_whole(path, content)
        assert caught.value.errno == 28
    else:
        with pytest.raises(OSError, match=r'not written \((Not a directory|File exists)\)'):
            write_whole(path / 'inside', content)
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_1.pth']


def test_interrupted_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C, or by SIGTERM under our tools: no half file stays."""

    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    make_runner(tmp_path, epochs=1).train()
    with monkeypatch.context() as patch:
        patch.setattr(safe_checkpoint_hook.os, 'fsync', interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_runner(tmp_path, epochs=2, resume=True).train()
    assert checkpoints(tmp_path) == ['epoch_1.pth']
    runner = make_runner(tmp_path, epochs=2, resume=True)
    runner.train()
    assert checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']


def test_full_disk_ends_the_run_and_keeps_what_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, 'No space left on device')

    make_runner(tmp_path, epochs=1).train()
    with monkeypatch.context() as patch:
        patch.setattr(safe_checkpoint_hook.os, 'fsync', full)
        with pytest.raises(OSError, match='not written'):
            make_runner(tmp_path, epochs=1).train()
    assert checkpoints(tmp_path) == ['epoch_1.pth']
    assert pointed(tmp_path) == tmp_path / 'epoch_1.pth'
    make_runner(tmp_path, epochs=2, resume=True).train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    make_runner(tmp_path, epochs=1).train()
    runner = make_runner(tmp_path, epochs=2)
    runner.model.fc.weight.data[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r'fc\.weight is not finite'):
        runner.train()
    assert checkpoints(tmp_path) == ['epoch_1.pth']
