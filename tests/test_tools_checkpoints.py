"""The checkpoint tools as users start them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmvit_backbones import convert_state_dict
from tests.checkpoints.peers import TWINS, official_file
from tests.utils import assert_same

ROOT = Path(__file__).parents[1]


def run(tool: str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({'model': official_file(TWINS), 'epoch': 9}, tmp_path / 'alt_gvt_toy.pth')
    return tmp_path / 'alt_gvt_toy.pth'


def test_convert(weights: Path, tmp_path: Path) -> None:
    done = run('convert_checkpoint.py', weights, 'toy', '--to', 'mmseg', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'tensors from official to mmseg, dropped 4' in done.stdout
    assert '  dropped head.fc.weight' in done.stdout
    assert 'wrote toy.safetensors' in done.stdout
    expected = convert_state_dict(official_file(TWINS), TWINS, 'mmseg')
    assert_same(load_file(tmp_path / 'toy.safetensors'), expected)


def test_publish(weights: Path, tmp_path: Path) -> None:
    done = run('publish_model.py', weights, 'public.pth', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    name = re.search(r'wrote (public-[0-9a-f]{8}\.pth)', done.stdout)[1]
    content = torch.load(tmp_path / name, weights_only=True)
    assert_same(content['state_dict'], official_file(TWINS))
