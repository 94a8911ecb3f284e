"""One config of each family, in small: it computes a loss, every parameter learns, it predicts.

`ALL_CONFIGS=1` takes every config instead.
"""

from __future__ import annotations

import copy
import os
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from tests.test_configs import CONFIGS, ROOT, made, make_configs, pytestmark  # noqa: F401

SIZE = (72, 61)  # no multiples, to be padded
NETWORKS = {
    # Few blocks; channels as in the config.
    'small': dict(embed_dims=(64, 128, 256, 512), stages=('LG',) * 4, num_heads=(2, 4, 8, 16)),
    'tiny-12': dict(embed_dims=192, depth=5, num_heads=4, layer_scale=1.0),
    'small-12': dict(embed_dims=384, depth=5, num_heads=8, layer_scale=1.0),
    'nano-12': dict(embed_dims=128, depth=5, num_heads=4, layer_scale=1.0),
}
# Heads with few layers, queries, points and regions.
HEADS = dict(
    num_layers=2,
    num_convs=1,
    num_shared_convs=1,
    stacked_convs=1,
    num=16,
    nms_pre=50,
    max_per_img=20,
    num_queries=20,
    num_dn_queries=10,
    num_points=64,
    feedforward_channels=32,
    fc_out_channels=32,
)


def families() -> list[str]:
    """The first config of each family whose backbone is made small, or all configs.

    Distillation, whose teacher is a download, has tests/test_distillation.py.
    """
    if os.environ.get('ALL_CONFIGS'):
        return [path for path in CONFIGS if 'distilled' not in path]
    chosen: dict[Any, str] = {}
    for folder, table in make_configs.read_tables(ROOT).items():
        for leaf in make_configs.read_leaves(ROOT, folder, table):
            arch, patch_size = leaf.fields['arch'], leaf.fields['patch_size']
            if not isinstance(arch, str) or arch in NETWORKS:
                # Where both sizes of a patch come with their own pyramid.
                kind = patch_size if folder in ('retinanet', 'dino') else None
                chosen.setdefault(
                    (folder, leaf.fields['file'], leaf.fields['network'], kind), leaf.path
                )
    return [path for path in chosen.values() if 'distilled' not in path]


def shrink(options: Any) -> None:
    """Make a head small, in place."""
    if isinstance(options, dict):
        for key, value in options.items():
            # The encoder of deformable attention samples few points as it is.
            if key in HEADS and isinstance(value, int) and value > HEADS[key]:
                options[key] = HEADS[key]
            shrink(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            shrink(value)


def small_model(cfg: Config) -> torch.nn.Module:
    cfg = copy.deepcopy(cfg)
    model = cfg.model.student if 'student' in cfg.model else cfg.model
    backbone = model.backbone
    if isinstance(backbone.arch, str) and backbone.arch in NETWORKS:
        arch = NETWORKS[backbone.arch]
        backbone.arch = arch
        if 'patch_size' in backbone and backbone.get('out_indices'):
            chosen = backbone.out_indices
            backbone.out_indices = (4,) if len(chosen) == 1 else (1, 2, 4)
        if 'arch' in (model.get('neck') or {}):
            model.neck.arch = arch
    shrink(cfg.model)
    backbone.init_cfg = None
    cfg.model.pop('init_cfg', None)
    built = make_configs.build(cfg, 'cpu')
    built.init_weights()  # DINO's level embedding has no values before
    return revert_sync_batchnorm(built)


def image_size(cfg: Config) -> tuple[int, int]:
    """Return `SIZE`, rounded up to what the config pads its images to."""
    divisor = (cfg.model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
    height, width = (-(-length // divisor) * divisor for length in SIZE)
    return height, width


def detection_sample(size: tuple[int, int], rotated: bool) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    sizes = ('img_shape', 'pad_shape', 'batch_input_shape', 'ori_shape')
    sample = DetDataSample(metainfo={**dict.fromkeys(sizes, size), 'scale_factor': (1.0, 1.0)})
    mask = np.zeros((1, *size), np.uint8)
    mask[:, 8:48, 8:40] = 1
    boxes: Any = torch.tensor([[8.0, 8.0, 40.0, 48.0]])
    if rotated:
        from mmrotate.structures.bbox import RotatedBoxes

        boxes = RotatedBoxes(torch.tensor([[24.0, 28.0, 32.0, 40.0, 0.3]]))
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([1]), masks=BitmapMasks(mask, *size)
    )
    sample.ignored_instances = InstanceData(bboxes=boxes[:0])
    return sample


def segmentation_sample(size: tuple[int, int]) -> Any:
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={'img_shape': size, 'ori_shape': size, 'pad_shape': size})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, *size)))
    return sample


def sample(scope: str, size: tuple[int, int]) -> Any:
    if scope == 'mmseg':
        return segmentation_sample(size)
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return DataSample().set_gt_label(1)
    return detection_sample(size, scope == 'mmrotate')


def check_prediction(scope: str, prediction: Any, size: tuple[int, int]) -> None:
    if scope == 'mmseg':
        assert prediction.pred_sem_seg.data.shape == (1, *size)
    elif scope == 'mmpretrain':
        assert float(prediction.pred_score.sum()) == pytest.approx(1, abs=1e-4)
    else:
        found = prediction.pred_instances
        assert len(found.scores) == len(found.bboxes) == len(found.labels)
        if 'masks' in found:
            assert found.masks.shape == (len(found), *size)


@pytest.mark.parametrize('path', families())
def test_trains_and_predicts(path: str) -> None:
    cfg = made()[0][path].config
    scope = cfg.default_scope
    if not find_spec(scope):
        pytest.skip(f'needs {scope}')
    torch.manual_seed(zlib.crc32(path.encode()))
    model = small_model(cfg)
    size = image_size(cfg)
    images: Tensor = torch.randn(2, model.backbone.in_channels, *size)
    samples = [sample(scope, size) for _ in range(2)]
    if cfg.model.type == 'RTMDet':  # its assigner takes masks for those of an instance head
        for item in samples:
            del item.gt_instances.masks
    loss, _ = model.parse_losses(model.loss(images, samples))
    assert loss.isfinite()
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    model.eval()
    with torch.no_grad():
        predictions = model.predict(images, [sample(scope, size) for _ in range(2)])
    for prediction in predictions:
        check_prediction(scope, prediction, size)
