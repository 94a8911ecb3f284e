"""Whole runs, as users start them: our configs by the toolkits' own tools and by ours."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvit_backbones.datasets import SHAPE_CLASSES, write_shapes

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
SHAPES = ROOT / 'configs/shapes'
DETECTOR = SHAPES / 'retinanet_twins-svt-toy_fpn_shapes.py'
SEGMENTOR = SHAPES / 'twins_svt-toy_uperhead_shapes.py'
# Six images in batches of two: three iterations an epoch.
FEW = [
    'train_dataloader.batch_size=2',
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
    *(f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')),
    'default_hooks.logger.interval=1',
]
# Without a threshold there are detections to evaluate even before the model has learnt a thing.
FEW_DETECTOR = [
    *FEW,
    'model.test_cfg.score_thr=0.0',
    'model.test_cfg.max_per_img=5',
    'default_hooks.checkpoint.interval=1',
]
ONE_EPOCH = [*FEW_DETECTOR, 'train_cfg.max_epochs=1']
TWO_EPOCHS = [*FEW_DETECTOR, 'train_cfg.max_epochs=2']


def run(tool, *args, cwd, ok=True):
    """Run a tool in a folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(tool), *map(str, args)],
        cwd=cwd,
        # Threads that wait for each other cost more than they save on so small a model.
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stdout[-5000:]
    return done.stdout


def find_tool(toolkit, name):
    """The tool that a toolkit's package brings along."""
    return Path(importlib.util.find_spec(toolkit).origin).parent / '.mim' / 'tools' / name


@pytest.fixture(scope='session')
def workspace(tmp_path_factory):
    """A folder outside the checkout, with data where the configs look for it."""
    folder = tmp_path_factory.mktemp('workspace')
    write_shapes(folder / 'data/shapes', train=6, val=2)
    return folder


def test_detector_with_mmdets_tools_then_ours(workspace):
    printed = run(
        find_tool('mmdet', 'train.py'),
        DETECTOR,
        '--work-dir=det',
        '--cfg-options',
        *ONE_EPOCH,
        cwd=workspace,
    )
    assert 'Epoch(train) [1][3/3]' in printed
    assert 'coco/bbox_mAP_50:' in printed

    printed = run(
        find_tool('mmdet', 'test.py'),
        DETECTOR,
        'det/epoch_1.pth',
        '--cfg-options',
        *ONE_EPOCH,
        cwd=workspace,
    )
    assert 'coco/bbox_mAP_50:' in printed

    printed = run(
        TOOLS / 'train.py',
        DETECTOR,
        '--work-dir=det',
        '--resume',
        '--auto-scale-lr',
        '--cfg-options',
        *TWO_EPOCHS,
        cwd=workspace,
    )
    assert 'resumed epoch: 1, iter: 3' in printed
    assert 'Scaling the original LR by 0.5' in printed
    assert 'Epoch(train) [2][3/3]' in printed
    assert 'Epoch(train) [1][' not in printed

    printed = run(
        TOOLS / 'test.py',
        DETECTOR,
        'det/epoch_2.pth',
        '--work-dir=det_test',
        '--out=det.pkl',
        '--show-dir=shown',
        '--tta',
        '--cfg-options',
        *TWO_EPOCHS,
        cwd=workspace,
    )
    assert 'coco/bbox_mAP_50:' in printed
    results = pickle.loads((workspace / 'det.pkl').read_bytes())
    assert len(results) == 2
    assert all(len(result['pred_instances']['scores']) > 0 for result in results)
    assert len(list(workspace.glob('det_test/*/shown/*.jpg'))) == 2


def test_segmentor_with_mmsegs_tools_then_ours(workspace):
    printed = run(
        find_tool('mmseg', 'train.py'),
        SEGMENTOR,
        '--work-dir=seg',
        '--cfg-options',
        *FEW,
        'train_cfg.max_iters=2',
        cwd=workspace,
    )
    assert 'Iter(train) [2/2]' in printed
    assert 'mIoU:' in printed

    printed = run(
        find_tool('mmseg', 'test.py'),
        SEGMENTOR,
        'seg/iter_2.pth',
        '--cfg-options',
        *FEW,
        cwd=workspace,
    )
    assert 'mIoU:' in printed

    printed = run(
        TOOLS / 'test.py',
        SEGMENTOR,
        'seg/iter_2.pth',
        '--work-dir=seg_test',
        '--out=segmented',
        '--show-dir=seg_shown',
        '--tta',
        '--cfg-options',
        *FEW,
        cwd=workspace,
    )
    assert 'mIoU:' in printed
    names = [path.stem for path in workspace.glob('data/shapes/ade/images/validation/*.jpg')]
    labels = {path.stem: np.asarray(Image.open(path)) for path in workspace.glob('segmented/*.png')}
    assert sorted(labels) == sorted(names)
    # Written as in ADE20K: class c as c + 1.
    assert all(label.min() >= 1 and label.max() <= 5 for label in labels.values())
    assert len(list(workspace.glob('seg_shown/vis_data/vis_image/*.png'))) == 2


# Runs tools one after another, each as if started alone: most of their time goes into imports.
IN_TURN = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    print('command', command, flush=True)
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')
"""


def run_in_turn(commands, cwd):
    """Run tools in one process and return what each printed."""
    words = [[str(word) for word in command] for command in commands]
    script = cwd / 'in_turn.py'
    script.write_text(IN_TURN)
    printed = run(script, json.dumps(words), cwd=cwd).split('command [')
    return printed[1:]


def test_other_detectors_with_mmdets_tools(workspace):
    """XCiT in both detectors, Twins-SVT in Mask R-CNN."""
    train, test = (find_tool('mmdet', name) for name in ('train.py', 'test.py'))
    two_stage = [*FEW, 'default_hooks.checkpoint.interval=1', 'train_cfg.max_epochs=1']
    two_stage += [f'model.test_cfg.rcnn.{key}' for key in ('score_thr=0.0', 'max_per_img=5')]
    commands = []
    for name, options in (
        ('mask-rcnn_xcit-toy_fpn_shapes', two_stage),
        ('mask-rcnn_twins-svt-toy_fpn_shapes', two_stage),
        ('retinanet_xcit-toy_fpn_shapes', ONE_EPOCH),
    ):
        config = SHAPES / f'{name}.py'
        checkpoint = f'{name}/epoch_1.pth'
        commands.append([train, config, f'--work-dir={name}', '--cfg-options', *options])
        commands.append([test, config, checkpoint, f'--work-dir={name}', '--cfg-options', *options])
    printed = run_in_turn(commands, workspace)
    assert len(printed) == 6
    for text in printed[0::2]:
        assert 'Epoch(train) [1][3/3]' in text
    for text in printed:
        assert 'coco/bbox_mAP_50:' in text
    for text in printed[:4]:
        assert 'coco/segm_mAP_50:' in text


def test_other_segmentors_with_mmsegs_tools(workspace):
    """XCiT in both segmentors, Twins-SVT in Semantic FPN."""
    train, test = (find_tool('mmseg', name) for name in ('train.py', 'test.py'))
    commands = []
    for name in (
        'xcit-toy_uperhead_shapes',
        'xcit-toy_sem-fpn_shapes',
        'twins_svt-toy_sem-fpn_shapes',
    ):
        config = SHAPES / f'{name}.py'
        options = ['--cfg-options', *FEW, 'train_cfg.max_iters=2']
        commands.append([train, config, f'--work-dir={name}', *options])
        commands.append([test, config, f'{name}/iter_2.pth', f'--work-dir={name}', *options])
    printed = run_in_turn(commands, workspace)
    assert len(printed) == 6
    for text in printed[0::2]:
        assert 'Iter(train) [2/2]' in text
    for text in printed:
        assert 'mIoU:' in text


CLASSIFIER = f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvit_backbones.TwinsSVT',
        arch=dict(
            embed_dims=(32, 64, 128, 160),
            stages=('LG', 'LG', 'LG', 'LG'),
            num_heads=(1, 2, 4, 5),
        ),
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=4,
        in_channels=160,
        topk=(1,),
        loss=dict(type='CrossEntropyLoss'),
    ),
    data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ImageNet',
        data_root='data/shapes/imagenet',
        split='train',
        metainfo=dict(classes={SHAPE_CLASSES}),
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet',
        data_root='data/shapes/imagenet',
        split='val',
        metainfo=dict(classes={SHAPE_CLASSES}),
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


def test_classifier_with_our_tools(workspace):
    (workspace / 'classifier.py').write_text(CLASSIFIER)
    printed = run(TOOLS / 'train.py', 'classifier.py', cwd=workspace)
    assert 'Epoch(train) [1][3/3]' in printed

    checkpoint = 'work_dirs/classifier/epoch_1.pth'
    flags = ('--tta', '--out=cls.pkl')
    printed = run(TOOLS / 'test.py', 'classifier.py', checkpoint, *flags, cwd=workspace)
    assert 'accuracy/top1:' in printed
    assert len(pickle.loads((workspace / 'cls.pkl').read_bytes())) == 2


def test_wrong_command_line_ends_with_one_line(tmp_path):
    printed = run(TOOLS / 'test.py', DETECTOR, 'no.pth', cwd=tmp_path, ok=False)
    assert printed.endswith("error: checkpoint must be an existing file or a URL, got 'no.pth'\n")
    assert 'Traceback' not in printed


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
