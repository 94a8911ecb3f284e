"""Checks and errors of our train and test tools; whole runs are in tests/stacks."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmvit_backbones.engine import NonFiniteError, launch
from mmvit_backbones.engine.launch import LaunchError, run_tool
from tests.checkpoints.payloads import write_payload

# A toolkit's tool that only says what reaches it.
TOOL = """
import argparse, sys

def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--resume', nargs='?', const='auto')
    parser.add_argument('--amp', action='store_true')
    parser.add_argument('--launcher', default='none')
    return parser.parse_args()

def main():
    print('ran', *sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Setting and deleting makes monkeypatch put back what stood there before the test.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tools in the place of mmseg's own, and a config of that toolkit in the current folder."""
    for name in ('train', 'test'):
        (tmp_path / f'{name}.py').write_text(TOOL)
    (tmp_path / 'config.py').write_text("default_scope = 'mmseg'")
    (tmp_path / 'weights.pth').touch()
    monkeypatch.setattr(launch, 'check_toolkit', lambda scope: None)
    monkeypatch.setattr(launch, 'tools_folder', lambda scope: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(launch, 'get_device', lambda: device)


@pytest.mark.usefixtures('toolkit')
@pytest.mark.parametrize(
    ('name', 'flags'),
    [
        ('train', ()),
        ('train', ('--resume',)),
        ('train', ('--resume', 'weights.pth')),
        ('test', ('weights.pth',)),
        ('test', ('https://example.org/weights.pth',)),
    ],
)
def test_arguments_reach_the_toolkits_tool(
    name: str, flags: tuple[str, ...], capsys: pytest.CaptureFixture
) -> None:
    before = sys.argv
    launch.launch(name, 'config.py', flags)
    assert capsys.readouterr().out.split() == ['ran', 'config.py', *flags]
    assert sys.argv is before
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'


@pytest.mark.usefixtures('toolkit')
@pytest.mark.parametrize('flags', [('--amp',), ('--launcher', 'slurm')])
def test_flags_that_need_an_accelerator(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_device(monkeypatch, 'cuda')
    launch.launch('train', 'config.py', flags)
    set_device(monkeypatch, 'cpu')
    with pytest.raises(LaunchError, match=rf"^{flags[0]} needs an accelerator.*has 'cpu'"):
        launch.launch('train', 'config.py', flags)


@pytest.mark.usefixtures('toolkit')
@pytest.mark.parametrize(
    ('name', 'flags'), [('train', ('--resume', 'no.pth')), ('test', ('no.pth',))]
)
def test_missing_checkpoint(name: str, flags: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError, match=r"checkpoint must be .* got 'no\.pth'"):
        launch.launch(name, 'config.py', flags)


def test_missing_config() -> None:
    with pytest.raises(LaunchError, match=r"config must be an existing file, got 'no\.py'"):
        launch.find_toolkit('no.py')


def test_broken_config_passes_through(tmp_path: Path) -> None:
    (tmp_path / 'broken.py').write_text('model = dict(')
    with pytest.raises(SyntaxError):
        launch.find_toolkit(str(tmp_path / 'broken.py'))


@pytest.mark.parametrize('text', ["default_scope = 'mmocr'", ''])
def test_unknown_toolkit(tmp_path: Path, text: str) -> None:
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(LaunchError, match=r'one of mmdet, mmseg, mmpretrain, got (.mmocr.|None)'):
        launch.find_toolkit(str(tmp_path / 'config.py'))


def test_missing_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'find_spec', lambda name: None)
    with pytest.raises(LaunchError, match=r'mmseg.*not installed: see docs/install\.md'):
        launch.check_toolkit('mmseg')


def test_mmcv_without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, 'find_spec', lambda name: None if name == 'mmcv._ext' else object())
    launch.check_toolkit('mmseg')
    with pytest.raises(LaunchError, match=r'mmdet needs mmcv with compiled operators'):
        launch.check_toolkit('mmdet')


def test_toolkit_without_its_tools(toolkit: Path) -> None:
    (toolkit / 'train.py').unlink()
    with pytest.raises(LaunchError, match=r'mmseg is installed without its tools: .*train\.py'):
        launch.load_tool('train', 'mmseg')


def test_torch_load_runs_no_code(tmp_path: Path) -> None:
    """Code that calls torch itself, such as a converter of a toolkit."""
    bad = write_payload(tmp_path / 'bad.pth', tmp_path / 'made', 'zip', 'meta', 'reduce', 2)
    launch.read_checkpoints_safely()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(bad, weights_only=False)
    assert not (tmp_path / 'made').exists()


def test_trust_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMVIT_ALLOW_UNSAFE_PICKLE', '1')
    launch.read_checkpoints_safely()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_choice_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    launch.read_checkpoints_safely()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '0'


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(launch, 'launch', fail)


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (LaunchError('no config'), 'error: no config'),
        (NonFiniteError('the loss is nan'), 'error: the loss is nan'),
        (OSError(28, 'No space left on device', 'a.pth'), 'error: a.pth: No space left on device'),
    ],
)
def test_tool_ends_with_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(SystemExit) as caught:
        run_tool('train', 'config.py', [])
    assert caught.value.code == line


def test_tool_lets_other_errors_through(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyError('a bug'))
    with pytest.raises(KeyError):
        run_tool('train', 'config.py', [])


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_tool_ends_at_a_signal(
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # Where the tests run in the background of a shell, SIGINT is ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(launch, 'launch', lambda *arguments: signal.raise_signal(number))
    with pytest.raises(SystemExit) as caught:
        run_tool('train', 'config.py', [])
    signal.signal(signal.SIGINT, interrupt)
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(f'stopped by {number.name}; --resume')
    assert signal.getsignal(signal.SIGTERM) == before
