"""The config for images of four channels and 16 bits trains, from weights for three channels."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmvit_backbones import TwinsSVT
from tests.test_configs import pytestmark, read  # noqa: F401
from tests.utils import randomize

tifffile = pytest.importorskip('tifffile')
pytest.importorskip('mmseg')

ARCH = read('configs/shapes/twins_svt-toy_uperhead_shapes.py').model.backbone.arch
SIZE = 64


def write_data(root: Path, split: str, count: int) -> None:
    """Write noise with a road, dark in all channels, and a building, bright in infrared alone."""
    rng = np.random.default_rng(len(split))
    (root / f'images/{split}').mkdir(parents=True)
    (root / f'labels/{split}').mkdir(parents=True)
    for i in range(count):
        image = rng.normal(30000, 3000, (SIZE, SIZE, 4))
        label = np.zeros((SIZE, SIZE), np.uint8)
        row, column = rng.integers(0, SIZE - 24, 2)
        label[:, column : column + 12] = 1
        label[row : row + 24, column + 4 : column + 24] = 2
        image[label == 1] -= 15000
        image[label == 2, 3] += 25000
        image = image.clip(0, 65535).astype(np.uint16)
        tifffile.imwrite(root / f'images/{split}/{i}.tif', image, photometric='rgb')
        Image.fromarray(label).save(root / f'labels/{split}/{i}.png')


def small_config(root: Path, checkpoint: Path, iterations: int) -> Config:
    """Return the config for a small network, small images and data in `root`."""
    cfg = copy.deepcopy(read('configs/own_data/twins_svt-s_uperhead_rgb-nir-16bit.py'))
    cfg.merge_from_dict(
        {
            'work_dir': str(root / 'work'),
            'model.backbone.init_cfg.checkpoint': str(checkpoint),
            'model.data_preprocessor.size': (SIZE, SIZE),
            'model.decode_head.in_channels': ARCH.embed_dims,
            'model.auxiliary_head.in_channels': ARCH.embed_dims[2],
            'model.decode_head.channels': 32,
            'model.auxiliary_head.channels': 32,
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations,
            'optim_wrapper.optimizer.lr': 1e-3,
        }
    )
    cfg.model.backbone.arch = ARCH
    cfg.param_scheduler = None
    cfg.default_hooks.pop('visualization')  # warns that it draws nothing
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
        for step in loader.dataset.pipeline:
            if 'crop_size' in step:
                step.crop_size = (SIZE, SIZE)
            if 'scale' in step:
                step.scale = (SIZE, SIZE)
    return cfg


def test_trains_from_weights_for_three_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '0')
    torch.manual_seed(0)
    write_data(tmp_path, 'train', 4)
    write_data(tmp_path, 'val', 1)
    source = randomize(TwinsSVT(arch=ARCH.to_dict()))
    torch.save(source.state_dict(), tmp_path / 'three.pth')
    runner = Runner.from_cfg(small_config(tmp_path, tmp_path / 'three.pth', iterations=2))
    backbone = runner.model.backbone
    runner.model.init_weights()
    expected = source.state_dict()
    (stem,) = (name for name, value in expected.items() if value.shape[1:2] == (3,))
    expected[stem] = 0.75 * expected[stem][:, [0, 1, 2, 0]]  # timm's rule
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)
    runner.train()
    moved = (backbone.state_dict()[stem] - expected[stem]).abs().amax((0, 2, 3))
    assert (moved > 1e-4).all()
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
