"""The built wheel works from where it is installed, and installing it moves nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mmvit_backbones import create_model
from mmvit_backbones.datasets import write_shapes

ROOT = Path(__file__).parents[1]
CONFIG = '.mim/configs/shapes/xcit-toy_cls_shapes.py'
FEW = ['train_dataloader.batch_size=2', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
FEW += ['default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1']
FEW += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
FEW += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]

# A real run of each tool: its arguments, and words that it prints. `{package}` is where the wheel
# lies; weights.pth and data are there.
RUNS = {
    'make_shapes.py': (['drawn', '--train=1', '--val=1'], 'wrote drawn'),
    'train.py': (
        [f'{{package}}/{CONFIG}', '--work-dir=run', '--cfg-options', *FEW],
        'Epoch(train) [1][2/2]',
    ),
    'test.py': (
        [f'{{package}}/{CONFIG}', 'run/epoch_1.pth', '--cfg-options', *FEW],
        'accuracy/top1',
    ),
    'convert_checkpoint.py': (['weights.pth', 'converted', '--to=timm'], 'wrote converted'),
    'check_data.py': ([f'{{package}}/{CONFIG}'], 'no fault found'),
    'visualize.py': (
        ['pyramid', 'xcit_nano_12_p16', 'data/shapes/imagenet/train/ring', '--out=pictures'],
        'pictures/pyramid',
    ),
    'export.py': (
        ['xcit_nano_12_p16', 'net.pt2', '--format=torch', '--size=64x64', '--static', '--check'],
        'net.pt2',
    ),
    'publish_model.py': (['run/epoch_1.pth', 'public.pth'], 'wrote public-'),
}
# Runs tools one after another, each as if started alone: most of their time goes into imports.
IN_TURN = """
import json, runpy, sys
import mmvit_backbones
print('imported', mmvit_backbones.__file__)
for command in json.loads(sys.argv[1]):
    print('command', command, flush=True)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit as end:
        print('ended with', end.code or 0, flush=True)
    else:
        print('ended with 0', flush=True)
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    ignored = shutil.ignore_patterns('__pycache__')
    for name in ('mmvit_backbones', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'MANIFEST.in', 'model-index.yml'):
        shutil.copy2(ROOT / name, source)
    build = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*build, '--wheel-dir', folder, source], check=True)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def package(wheel: Path) -> Path:
    """Where the wheel was installed: an installer of a pure wheel does no more than unpack it."""
    site = wheel.parent / 'site packages'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site / 'mmvit_backbones'


def test_contents(package: Path) -> None:
    assert (package / 'py.typed').is_file()
    assert (package / '.mim/model-index.yml').is_file()
    for config in ROOT.glob('configs/**/*.py'):
        assert (package / '.mim' / config.relative_to(ROOT)).is_file()
    tools = {path.name for path in (package / '.mim/tools').iterdir()}
    scripts = {'dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'}
    assert tools == {*RUNS, *scripts}
    installed = {path.name for path in package.parent.iterdir()}
    assert not installed & {'benchmarks', 'demo', 'tests', 'tools'}


def test_every_tool_works_from_site_packages(package: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / 'data/shapes', formats=['imagenet'], train=4, val=4)
    weights = create_model('xcit_nano_12_p16', num_classes=2).state_dict()
    torch.save({'state_dict': weights}, tmp_path / 'weights.pth')
    tools = package / '.mim/tools'
    commands = [[str(tools / name), '--help'] for name in RUNS]
    for name, (arguments, _) in RUNS.items():
        words = [word.format(package=package) for word in arguments]
        commands.append([str(tools / name), *words])
    (tmp_path / 'in_turn.py').write_text(IN_TURN)
    done = subprocess.run(
        [sys.executable, 'in_turn.py', json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(package.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    first, *printed = done.stdout.split('command [')
    assert str(package) in first
    assert len(printed) == len(commands)
    for text in printed:
        assert 'ended with 0' in text, text[-3000:]
    for text in printed[: len(RUNS)]:
        assert 'usage: ' in text
    for text, (_, words) in zip(printed[len(RUNS) :], RUNS.values(), strict=True):
        assert words in text


def fake_install(site: Path, name: str, version: str) -> None:
    """Make a resolver believe that a distribution is installed."""
    folder = site / f'{name}-{version}.dist-info'
    folder.mkdir(parents=True)
    (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    (folder / 'INSTALLER').write_text('pip\n')
    (folder / 'RECORD').write_text('')


def fake_wheel(index: Path, name: str, version: str) -> None:
    """Offer a distribution to a resolver."""
    info = f'{name}-{version}.dist-info'
    with zipfile.ZipFile(index / f'{name}-{version}-py3-none-any.whl', 'w') as archive:
        metadata = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        archive.writestr(f'{info}/METADATA', metadata)
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')


@pytest.mark.parametrize(
    ('extra', 'present'),
    [
        ('', {'torch': '2.1.2', 'numpy': '1.26.4', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}),
        ('', {'torch': '2.12.0', 'numpy': '2.2.6', 'onedl_mmcv': '2.3.6'}),
        (
            '[openmmlab]',
            {
                **{'torch': '2.1.2', 'numpy': '1.26.4', 'setuptools': '69.5.1'},
                **{'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'},
                **{'mmsegmentation': '1.2.2', 'mmpretrain': '1.2.0'},
            },
        ),
        (
            '[onedl]',
            {
                **{'torch': '2.12.0', 'numpy': '2.2.6', 'onedl_mmengine': '0.10.12'},
                **{'onedl_mmcv': '2.3.6', 'onedl_mmdetection': '3.5.1'},
                **{'onedl_mmsegmentation': '1.4.2', 'onedl_mmpretrain': '1.3.6'},
            },
        ),
    ],
)
def test_installing_moves_nothing_of_the_users(
    extra: str, present: dict[str, str], wheel: Path, tmp_path: Path
) -> None:
    """A resolver's dry run, without a network, where newer versions of everything are offered."""
    environment, index = tmp_path / 'environment', tmp_path / 'index'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
    site = next(environment.glob('lib/python*/site-packages'))
    index.mkdir()
    for name, version in present.items():
        fake_install(site, name, version)
        fake_wheel(index, name, '99.0')
    for name in ('einops', 'safetensors', 'ftfy', 'regex'):
        fake_wheel(index, name, '99.0')
    resolver = [Path(sys.executable).with_name('uv'), 'pip', 'install', '--dry-run', '--no-index']
    done = subprocess.run(
        [*resolver, '--python', environment, '--find-links', index, f'{wheel}{extra}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    changes = re.findall(r'^ ([-+~]) ([a-z-]+)', done.stdout, re.MULTILINE)
    added = {'mmvit-backbones', 'einops', 'safetensors'}
    if extra == '[openmmlab]':
        added |= {'ftfy', 'regex'}
    assert sorted(changes) == sorted(('+', name) for name in added)
