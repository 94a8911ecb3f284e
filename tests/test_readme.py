"""The code of the README and of docs/how_to/predict.md runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

ROOT = Path(__file__).resolve().parents[1]
PAGES = ('README.md', 'docs/how_to/predict.md')
TEXT = '\n'.join((ROOT / page).read_text(encoding='utf-8') for page in PAGES)


def python_block(containing: str) -> str:
    blocks = [b for b in re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL) if containing in b]
    assert len(blocks) == 1, f'{len(blocks)} Python blocks hold {containing!r}'
    return blocks[0]


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=folder, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def save_random_weights(config: str, path: Path) -> None:
    from mmvit_backbones.registry import MODELS

    cfg = Config.fromfile(ROOT / 'configs' / 'shapes' / config)
    init_default_scope(cfg.default_scope)
    model_cfg = cfg.model
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in model_cfg:
        model_cfg = {**model_cfg, 'data_preprocessor': cfg.data_preprocessor}
    if cfg.default_scope == 'mmpretrain':
        model_cfg['data_preprocessor'] = {
            'type': 'ClsDataPreprocessor', **model_cfg['data_preprocessor']
        }  # fmt: skip
    model = MODELS.build(model_cfg)
    metainfo = cfg.get('metainfo') or dict(classes=cfg.classes)
    meta = dict(dataset_meta=dict(metainfo))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


def test_plain_pytorch(tmp_path: Path) -> None:
    printed = run(python_block('list_models()'), tmp_path)
    assert '(2, 384, 50, 84), (2, 384, 25, 42), (2, 384, 13, 21), (2, 384, 7, 11)' in printed
    assert 'dialect ours: loaded' in printed


def test_config() -> None:
    scope: dict = {}
    exec(python_block('model = dict('), scope)
    backbone = scope['model']['backbone']
    from mmvit_backbones.registry import MODELS

    built = MODELS.build(backbone)
    assert list(built.out_channels) == scope['model']['neck']['in_channels']


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with the configs, two pictures and a video of three frames."""
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'images').mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), np.uint8)
    for name, picture in zip('ab', pictures, strict=False):
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.jpg'), picture)
    codec = cv2.VideoWriter.fourcc(*'mp4v')
    video = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), codec, 5, (128, 96))
    for picture in pictures:
        video.write(picture)
    video.release()
    return tmp_path


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_detection(folder: Path) -> None:
    save_random_weights('retinanet_twins-svt-toy_fpn_shapes.py', folder / 'detector.pth')
    printed = run(python_block('DetInferencer'), folder)
    assert {path.name for path in (folder / 'found' / 'vis').iterdir()} == {'a.jpg', 'b.jpg'}
    assert len(re.findall(r'^\[', printed, re.MULTILINE)) == 3


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_segmentation(folder: Path) -> None:
    save_random_weights('xcit-toy_uperhead_shapes.py', folder / 'segmentor.pth')
    run(python_block('MMSegInferencer'), folder)
    assert len(list((folder / 'segmented' / 'vis').iterdir())) == 2


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_classification(folder: Path) -> None:
    save_random_weights('xcit-toy_cls_shapes.py', folder / 'classifier.pth')
    printed = run(python_block('ImageClassificationInferencer'), folder)
    assert any(name in printed for name in ('circle', 'ring', 'square', 'triangle'))


def test_readme_is_short() -> None:
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 120
