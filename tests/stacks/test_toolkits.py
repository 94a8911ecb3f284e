"""Whole runs, as users start them: the toolkits' own tools and ours train, test and resume.

One process for each toolkit runs all its commands: most of the time of a command is imports.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvit_backbones.datasets import write_shapes
from mmvit_backbones.engine.launch import tools_folder

ROOT = Path(__file__).parents[2]
OUR_TOOLS = ROOT / 'tools'
SHAPES = ROOT / 'configs/shapes'
# Four images in batches of two.
OPTIONS = [
    'train_dataloader.batch_size=2',
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
    *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
    'default_hooks.logger.interval=1',
]
EPOCHS = ['default_hooks.checkpoint.interval=1', 'train_cfg.val_interval=1']
# Without a threshold there are detections to evaluate even before a model has learnt a thing.
ANY_BOX = ['model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=5']
ANY_BOX_OF_RCNN = [option.replace('test_cfg.', 'test_cfg.rcnn.') for option in ANY_BOX]

# Runs tools one after another, each as if started alone.
IN_TURN = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    print('command', command, flush=True)
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout, with data where the configs look for it."""
    folder = tmp_path_factory.mktemp('workspace')
    write_shapes(folder / 'data/shapes', train=4, val=2)
    return folder


def run_in_turn(commands: list[list], folder: Path) -> list[str]:
    """Run tools in one process and return what each printed."""
    words = [[str(word) for word in command] for command in commands]
    (folder / 'in_turn.py').write_text(IN_TURN)
    done = subprocess.run(
        [sys.executable, 'in_turn.py', json.dumps(words)],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    printed = done.stdout.split('command [')[1:]
    assert len(printed) == len(commands)
    return printed


def metric(text: str, name: str) -> float:
    """Return the last value of a metric in a log."""
    value = float(re.findall(rf'{name}: ([\d.]+)', text)[-1])
    print(f'  {name} {value}')
    return value


def test_detectors(workspace: Path) -> None:
    tools = tools_folder('mmdet')
    retinanets = {
        network: SHAPES / f'retinanet_{network}-toy_fpn_shapes.py'
        for network in ('twins-svt', 'xcit')
    }
    mask_rcnns = [SHAPES / f'mask-rcnn_{network}-toy_fpn_shapes.py' for network in retinanets]
    commands = []
    for network, config in retinanets.items():
        options = ['--cfg-options', *OPTIONS, *EPOCHS, *ANY_BOX]
        one, two = ([*options, f'train_cfg.max_epochs={epochs}'] for epochs in (1, 2))
        folder = f'--work-dir={network}'
        commands.append([tools / 'train.py', config, folder, *one])
        commands.append([tools / 'test.py', config, f'{network}/epoch_1.pth', *one])
        commands.append([tools / 'train.py', config, folder, '--resume', *two])
    ours = ['--work-dir=tested', '--out=det.pkl', '--show-dir=shown', '--tta', *options]
    commands.append([OUR_TOOLS / 'test.py', config, f'{network}/epoch_2.pth', *ours])
    for config in mask_rcnns:
        options = ['--cfg-options', *OPTIONS, *EPOCHS, *ANY_BOX_OF_RCNN, 'train_cfg.max_epochs=1']
        command = [OUR_TOOLS / 'train.py', config, f'--work-dir={config.stem}', '--auto-scale-lr']
        commands.append([*command, *options])
    printed = run_in_turn(commands, workspace)
    for start, network in zip((0, 3), retinanets, strict=True):
        trained, tested, resumed = printed[start : start + 3]
        print('mmdet', network)
        assert 'Epoch(train) [1][2/2]' in trained
        assert metric(tested, 'coco/bbox_mAP_50') == metric(trained, 'coco/bbox_mAP_50')
        assert 'resumed epoch: 1, iter: 2' in resumed
        assert 'Epoch(train) [2][2/2]' in resumed
        assert 'Epoch(train) [1][' not in resumed
        assert metric(resumed, 'coco/bbox_mAP_50') >= 0
    assert metric(printed[6], 'coco/bbox_mAP_50') >= 0
    results = pickle.loads((workspace / 'det.pkl').read_bytes())
    assert len(results) == 2
    assert all(len(result['pred_instances']['scores']) > 0 for result in results)
    assert len(list(workspace.glob('tested/*/shown/*.jpg'))) == 2
    for text in printed[7:]:
        assert 'Scaling the original LR by 0.5' in text
        assert metric(text, 'coco/segm_mAP_50') >= 0


def test_segmentors(workspace: Path) -> None:
    tools = tools_folder('mmseg')
    commands = []
    for network in ('twins_svt', 'xcit'):
        config = SHAPES / f'{network}-toy_uperhead_shapes.py'
        options = ['--cfg-options', *OPTIONS, 'default_hooks.checkpoint.interval=2']
        options += ['train_cfg.val_interval=2']
        folder = f'--work-dir=seg_{network}'
        two, four = ([*options, f'train_cfg.max_iters={iters}'] for iters in (2, 4))
        commands.append([tools / 'train.py', config, folder, *two])
        commands.append([tools / 'test.py', config, f'seg_{network}/iter_2.pth', *two])
        commands.append([tools / 'train.py', config, folder, '--resume', *four])
    # Under another name than that of the runs before in this process, whose folder it would keep.
    ours = ['--work-dir=seg', '--out=segmented', '--show-dir=seg_shown', '--tta', *two]
    ours += ['visualizer.name=shown', 'default_hooks.visualization.interval=1']  # mmseg 1.2: 50
    commands.append([OUR_TOOLS / 'test.py', config, f'seg_{network}/iter_4.pth', *ours])
    for network in ('twins_svt', 'xcit'):
        config = SHAPES / f'{network}-toy_sem-fpn_shapes.py'
        commands.append([OUR_TOOLS / 'train.py', config, f'--work-dir=fpn_{network}', *two])
    printed = run_in_turn(commands, workspace)
    for start, network in zip((0, 3), ('twins_svt', 'xcit'), strict=True):
        trained, tested, resumed = printed[start : start + 3]
        print('mmseg', network)
        assert 'Iter(train) [2/2]' in trained
        assert metric(tested, 'mIoU') == metric(trained, 'mIoU')
        assert 'Iter(train) [4/4]' in resumed
        assert 'Iter(train) [2/4]' not in resumed
        assert metric(resumed, 'mIoU') >= 0
    for text in printed[6:]:
        assert metric(text, 'mIoU') >= 0
    names = {path.stem for path in workspace.glob('data/shapes/ade/images/validation/*.jpg')}
    labels = {path.stem: np.asarray(Image.open(path)) for path in workspace.glob('segmented/*.png')}
    assert labels.keys() == names
    # Written as in ADE20K: class c as c + 1.
    assert all(label.min() >= 1 and label.max() <= 5 for label in labels.values())
    assert len(list(workspace.glob('seg_shown/vis_data/vis_image/*.png'))) == 2


def test_classifiers(workspace: Path) -> None:
    tools = tools_folder('mmpretrain')
    commands = []
    for network in ('twins-svt', 'xcit'):
        config = SHAPES / f'{network}-toy_cls_shapes.py'
        options = ['--cfg-options', *OPTIONS, *EPOCHS]
        one, two = ([*options, f'train_cfg.max_epochs={epochs}'] for epochs in (1, 2))
        folder = f'--work-dir=cls_{network}'
        commands.append([tools / 'train.py', config, folder, *one])
        commands.append([tools / 'test.py', config, f'cls_{network}/epoch_1.pth', *one])
        commands.append([tools / 'train.py', config, folder, '--resume', *two])
    ours = ['--tta', '--out=cls.pkl', *options]
    commands.append([OUR_TOOLS / 'test.py', config, f'cls_{network}/epoch_2.pth', *ours])
    printed = run_in_turn(commands, workspace)
    for start, network in zip((0, 3), ('twins-svt', 'xcit'), strict=True):
        trained, tested, resumed = printed[start : start + 3]
        print('mmpretrain', network)
        assert 'Epoch(train) [1][2/2]' in trained
        assert metric(tested, 'accuracy/top1') == metric(trained, 'accuracy/top1')
        assert 'resumed epoch: 1, iter: 2' in resumed
        assert 'Epoch(train) [2][2/2]' in resumed
        assert metric(resumed, 'accuracy/top1') >= 0
    assert metric(printed[6], 'accuracy/top1') >= 0
    assert len(pickle.loads((workspace / 'cls.pkl').read_bytes())) == 2
