"""Runs that a signal, a full disk or a read-only folder ends: one line, and nothing is lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # by optimizers: each process would import it anew

from mmvit_backbones.engine import safe_checkpoint_hook
from mmvit_backbones.engine.launch import one_line_errors, stoppable
from tests.engine.test_safe_checkpoint_hook import Line, checkpoints, make_runner

pytestmark = pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork:DeprecationWarning')

READY = 'at the moment'
NOBODY = 65534


def say_ready() -> None:
    print(READY, flush=True)
    time.sleep(60)  # until the signal comes


class Tool:
    """A training tool in a process of its own.

    Args:
        prepare: Called in that process before training.
        settings: Of `make_runner`.
    """

    def __init__(self, prepare: Callable[[], Any] = lambda: None, **settings: Any) -> None:
        output, inner = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            status = 99
            try:
                # Where the tests run in the background of a shell, SIGINT is ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.stdout = sys.stderr = os.fdopen(inner, 'w')
                with one_line_errors(), stoppable():
                    prepare()
                    make_runner(**settings).train()
                status = 0
            except SystemExit as stop:  # as the interpreter does at its end
                if isinstance(stop.code, str):
                    print(stop.code)
                status = 1 if isinstance(stop.code, str) else int(stop.code or 0)
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                os._exit(status)
        os.close(inner)
        self.output = os.fdopen(output)

    def end(self) -> tuple[int, list[str]]:
        """Return the exit status and the lines that it printed, without MMEngine's own."""
        with self.output:
            lines = self.output.read().splitlines()
        lines = [line for line in lines if not line.startswith('Loads checkpoint by')]
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]), lines


def wait_in_training() -> None:
    """Say when the second epoch trains."""
    step = Line.train_step
    calls = iter(range(100))

    def train_step(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 2:
            say_ready()
        return step(*args, **kwargs)

    Line.train_step = train_step


def wait_in_writing() -> None:
    """Say when the second checkpoint is written but has not got its name."""
    sync = os.fsync
    calls = iter(range(100))

    def fsync(number: int) -> None:
        if next(calls) == 2:  # the first checkpoint, the pointer, the second checkpoint
            say_ready()
        sync(number)

    os.fsync = fsync


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize('prepare', [wait_in_training, wait_in_writing])
def test_signal(tmp_path: Path, prepare: Callable[[], None], number: signal.Signals) -> None:
    tool = Tool(prepare, work_dir=tmp_path)
    assert tool.output.readline().strip() == READY
    os.kill(tool.process, number)
    status, lines = tool.end()
    assert status == 128 + number
    assert lines == [f'stopped by {number.name}; --resume goes on from the last checkpoint']
    assert checkpoints(tmp_path) == ['epoch_1.pth']
    assert Tool(work_dir=tmp_path, epochs=2, resume=True).end() == (0, [])
    assert checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']


def assert_stopped_and_resumed(
    tool: Tool, work_dir: Path, reason: str, make_room: Callable[[], Any]
) -> None:
    """The tool ends with one line, keeps the first epoch, and goes on when there is room again."""
    status, lines = tool.end()
    assert status == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: ')
    assert reason in lines[0]
    assert checkpoints(work_dir) == ['epoch_1.pth']
    torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    make_room()
    assert Tool(work_dir=work_dir, epochs=2, resume=True).end() == (0, [])
    assert checkpoints(work_dir) == ['epoch_1.pth', 'epoch_2.pth']


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 1 MiB."""
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip('only who may mount can make a small disk')
    try:
        yield
    finally:
        subprocess.run(['umount', str(folder)], check=True)


def fill(path: Path, left: int) -> None:
    """Fill a disk with a file, but for some bytes."""
    disk = os.statvfs(path.parent)
    path.write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))


@pytest.mark.parametrize('left', [0, 4096, 16384])
def test_full_disk(tmp_path: Path, left: int) -> None:
    """From no room at all to none for the checkpoint."""
    work_dir, filler = tmp_path / 'disk', tmp_path / 'disk/filler'
    with small_disk(work_dir):
        assert Tool(work_dir=work_dir, epochs=1).end() == (0, [])
        fill(filler, left)
        tool = Tool(work_dir=work_dir, epochs=2, resume=True)
        assert_stopped_and_resumed(tool, work_dir, 'No space left on device', filler.unlink)


def test_quota(tmp_path: Path) -> None:
    assert Tool(work_dir=tmp_path, epochs=1).end() == (0, [])

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    tool = Tool(limit, work_dir=tmp_path, epochs=2, resume=True)
    assert_stopped_and_resumed(tool, tmp_path, 'File too large', lambda: None)


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
@pytest.mark.parametrize('moment', ['before the run', 'in training'])
def test_read_only_folder(tmp_path: Path, moment: str) -> None:
    assert Tool(work_dir=tmp_path, epochs=1).end() == (0, [])
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == 'root' and folder.stat().st_mode & 0o055 == 0:
            folder.chmod(0o755)

    def become_nobody() -> None:
        os.setuid(NOBODY)

    def become_nobody_later() -> None:
        step = Line.train_step

        def train_step(*args: Any, **kwargs: Any) -> Any:
            os.setuid(NOBODY)
            return step(*args, **kwargs)

        Line.train_step = train_step

    prepare = become_nobody if moment == 'before the run' else become_nobody_later
    tool = Tool(prepare, work_dir=tmp_path, epochs=2, resume=True)
    assert_stopped_and_resumed(tool, tmp_path, 'Permission denied', lambda: None)


def test_killed_in_writing_leaves_nothing_to_trip_over(tmp_path: Path) -> None:
    tool = Tool(wait_in_writing, work_dir=tmp_path)
    assert tool.output.readline().strip() == READY
    os.kill(tool.process, signal.SIGKILL)
    assert tool.end() == (-signal.SIGKILL, [])
    unfinished = 'epoch_2.pth' + safe_checkpoint_hook.UNFINISHED
    assert checkpoints(tmp_path) == ['epoch_1.pth', unfinished]
    assert Tool(work_dir=tmp_path, epochs=2, resume=True).end() == (0, [])
    assert checkpoints(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
