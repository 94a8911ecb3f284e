"""Training and testing by the toolkits' own tools, after checks that spare a user a bad run.

A config names its toolkit by `default_scope`. That toolkit's own `tools/train.py` or
`tools/test.py` then runs in this process with the arguments as they came, so its flags are the
flags. A config is Python code that runs here: use only files you trust. Checkpoints are data and
need no trust, see docs/security.md.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device

from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.reading import ALLOW_UNSAFE
from mmvit_backbones.engine.finite_loss_hook import NonFiniteError

TOOLKITS = ('mmdet', 'mmseg', 'mmpretrain')
# Devices for which mmengine has mixed precision and processes that train together.
ACCELERATORS = ('cuda', 'npu', 'mlu', 'musa')
INSTALL_GUIDE = 'docs/install.md, or python -m mmvit_backbones.check'


class LaunchError(ValueError):
    """A wrong command line, a file or a package that is not there: nothing was run."""


def run_tool(name: str, config: str, flags: Sequence[str]) -> None:
    """Run a toolkit's own tool, and end with one line where the user can mend what is wrong.

    Args:
        name: 'train' or 'test'.
        config: Path of the config.
        flags: What that tool takes beside the config.

    Raises:
        SystemExit: If the tool or a check ended with an error of the user's.
    """
    with one_line_errors(), stoppable():
        launch(name, config, flags)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line where the user can mend what is wrong, and after a signal.

    Raises:
        SystemExit: For those errors; others pass.
    """
    try:
        yield
    except (LaunchError, CheckpointError, NonFiniteError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        # A full disk, a quota, a folder without permission: whatever was to be written.
        sys.exit(f'error: {error.filename or "a file"}: {error.strerror or error}')
    except KeyboardInterrupt as interrupt:
        number = signal.Signals[str(interrupt) or 'SIGINT']
        print(
            f'stopped by {number.name}; --resume goes on from the last checkpoint', file=sys.stderr
        )
        sys.exit(128 + number)


def launch(name: str, config: str, flags: Sequence[str]) -> None:
    """Check config, toolkit and flags, then run the toolkit's tool in this process.

    Args:
        name: 'train' or 'test'.
        config: Path of the config.
        flags: What that tool takes beside the config.

    Raises:
        LaunchError: If a file, the toolkit, mmcv's operators or the device for a flag is missing.
        CheckpointError: If a checkpoint is refused, damaged, or of another model.
        NonFiniteError: If the loss becomes NaN or infinite.
        KeyboardInterrupt: At SIGINT and SIGTERM.
    """
    read_checkpoints_safely()
    tool = load_tool(name, find_toolkit(config))
    before = sys.argv
    sys.argv = [str(tool.__file__), config, *flags]
    try:
        check_flags(vars(tool.parse_args()))
        tool.main()
    finally:
        sys.argv = before


def read_checkpoints_safely() -> None:
    """Make every later `torch.load` of this process refuse pickles that run code.

    MMEngine reads checkpoints by our reader, see `mmengine_loader`. This variable, which torch
    reads at each load, is for code that calls `torch.load` itself. A value that the user set stays,
    and so does torch's own where the user trusts a file.
    """
    if os.environ.get(ALLOW_UNSAFE) != '1':
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM, by which schedulers end a job, interrupt as Ctrl-C does.

    Files that are being written are then removed, instead of being left half written.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def find_toolkit(config: str) -> str:
    """Return the toolkit that a config was written for.

    Args:
        config: Path of the config.

    Raises:
        LaunchError: If the file is missing, or its toolkit is unknown or not installed.
    """
    if not Path(config).is_file():
        raise LaunchError(f'config must be an existing file, got {config!r}')
    scope = Config.fromfile(config).get('default_scope')
    check_toolkit(scope)
    return str(scope)


def check_toolkit(scope: Any) -> None:
    """Check that the `default_scope` of a config is a toolkit that is installed and can work.

    Raises:
        LaunchError: If it is none of `TOOLKITS`, not installed, or lacks operators of mmcv.
    """
    if scope not in TOOLKITS:
        raise LaunchError(
            f'default_scope of a config must be one of {", ".join(TOOLKITS)}, got {scope!r}'
        )
    if find_spec(scope) is None:
        raise LaunchError(f'{scope}, which the config needs, is not installed: see {INSTALL_GUIDE}')
    if scope == 'mmdet' and find_spec('mmcv._ext') is None:
        raise LaunchError(
            f'mmdet needs mmcv with compiled operators, and this mmcv has none: see {INSTALL_GUIDE}'
        )


def load_tool(name: str, toolkit: str) -> ModuleType:
    """Import a tool that a toolkit brings along.

    Args:
        name: 'train' or 'test'.
        toolkit: One of `TOOLKITS`, installed.

    Raises:
        LaunchError: If this installation of the toolkit lacks its tools.
    """
    path = tools_folder(toolkit) / f'{name}.py'
    if not path.is_file():
        raise LaunchError(f'{toolkit} is installed without its tools: there is no {path}')
    spec = spec_from_file_location(f'{toolkit}_{name}_tool', path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tools_folder(toolkit: str) -> Path:
    """Return the folder where an installed toolkit has its tools."""
    spec = find_spec(toolkit)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / '.mim' / 'tools'


def check_flags(flags: dict[str, Any]) -> None:
    """Check what a toolkit's tool would only find out after minutes, or say in a riddle.

    Args:
        flags: The parsed arguments of the toolkit's tool.

    Raises:
        LaunchError: If a checkpoint is missing, or a flag needs an accelerator and there is none.
    """
    for name in ('checkpoint', 'resume'):
        source = flags.get(name)
        if isinstance(source, str) and source != 'auto':
            check_checkpoint(source)
    needs = {'--amp': flags.get('amp'), '--launcher': flags.get('launcher', 'none') != 'none'}
    for flag, is_used in needs.items():
        if is_used and get_device() not in ACCELERATORS:
            raise LaunchError(
                f'{flag} needs an accelerator ({", ".join(ACCELERATORS)}), this machine has '
                f'{get_device()!r}: run without it'
            )


def check_checkpoint(source: str) -> None:
    """Check that a checkpoint is there, if it is no URL.

    Args:
        source: Path or URL.

    Raises:
        LaunchError: If it is a path where no file is.
    """
    if '://' not in source and not Path(source).is_file():
        raise LaunchError(f'checkpoint must be an existing file or a URL, got {source!r}')
