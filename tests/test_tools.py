"""Our command-line tools and the scripts that start them on several machines."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'


def test_wrong_command_line_ends_with_one_line(tmp_path):
    config = ROOT / 'configs/shapes/twins_svt-toy_uperhead_shapes.py'
    done = subprocess.run(
        [sys.executable, TOOLS / 'test.py', config, 'no.pth', '--tta'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: checkpoint must be an existing file or a URL, got 'no.pth'\n"


@pytest.fixture(params=['checkout', 'package'])
def scripts(request, tmp_path):
    """Our tools where a checkout has them, and where an installed package has them."""
    if request.param == 'checkout':
        return TOOLS
    return shutil.copytree(TOOLS, tmp_path / 'site packages/mmvit_backbones/.mim/tools')


@pytest.fixture
def started(tmp_path):
    """Run a script with programs that only say how they were started."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name in ('python', 'srun'):
        stub = programs / name
        stub.write_text(
            f'#!{sys.executable}\nimport json, sys\nprint(json.dumps(["{name}", *sys.argv[1:]]))\n'
        )
        stub.chmod(0o755)

    def start(script, *args, ok=True, **env):
        path = f'{programs}{os.pathsep}{os.environ["PATH"]}'
        done = subprocess.run(
            ['bash', str(script), *args],
            cwd=tmp_path,
            env={**os.environ, 'PATH': path, **env},
            capture_output=True,
            text=True,
        )
        if ok:
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)
        assert done.returncode == 2
        return done.stderr

    return start


def test_dist_scripts(scripts, started):
    flags = ['--cfg-options', 'a.b="[1, 2]"']
    command = started(scripts / 'dist_train.sh', 'c.py', '4', *flags, PORT='5', NNODES='2')
    assert command == [
        *('python', '-m', 'torch.distributed.run', '--nnodes', '2', '--node-rank', '0'),
        *('--master-addr', '127.0.0.1', '--master-port', '5', '--nproc-per-node', '4'),
        *(str(scripts / 'train.py'), 'c.py', '--launcher', 'pytorch', *flags),
    ]
    command = started(scripts / 'dist_test.sh', 'c.py', 'w.pth', '4', '--tta', NODE_RANK='1')
    assert command[3:7] == ['--nnodes', '1', '--node-rank', '1']
    assert command[-6:] == [
        *(str(scripts / 'test.py'), 'c.py', 'w.pth', '--launcher', 'pytorch', '--tta'),
    ]


def test_slurm_scripts(scripts, started):
    command = started(
        *(scripts / 'slurm_train.sh', 'gpu', 'my job', 'c.py', '--amp'),
        **{'GPUS': '4', 'SRUN_ARGS': '--qos=high --time=1:00'},
    )
    assert command == [
        *('srun', '--partition', 'gpu', '--job-name', 'my job', '--gres', 'gpu:4'),
        *('--ntasks', '4', '--ntasks-per-node', '4', '--cpus-per-task', '5'),
        *('--kill-on-bad-exit=1', '--qos=high', '--time=1:00'),
        *('python', '-u', str(scripts / 'train.py'), 'c.py', '--launcher', 'slurm', '--amp'),
    ]
    command = started(scripts / 'slurm_test.sh', 'gpu', 'job', 'c.py', 'w.pth', GPUS='16')
    assert command[5:11] == ['--gres', 'gpu:8', '--ntasks', '16', '--ntasks-per-node', '8']
    assert command[-5:] == [str(scripts / 'test.py'), 'c.py', 'w.pth', '--launcher', 'slurm']


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_say_how_they_are_used(name, started):
    assert f'{name}.sh' in started(TOOLS / f'{name}.sh', 'one', ok=False)
