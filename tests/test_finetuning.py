"""Fine-tuning through mmpretrain starts where it should."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmvit_backbones.datasets import write_shapes

ROOT = Path(__file__).parents[1]
CONFIGS = {
    name: ROOT / f'configs/shapes/{name}-toy_cls_shapes.py' for name in ('twins-svt', 'xcit')
}


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout, with data where the configs look for it."""
    folder = tmp_path_factory.mktemp('workspace')
    write_shapes(folder / 'data/shapes', formats=['imagenet'], train=4, val=2)
    return folder


class FirstLoss(Exception):  # noqa: N818
    """Carries weights and loss of the first step out of a run."""


@pytest.mark.parametrize('network', CONFIGS)
@pytest.mark.parametrize('how', ['load_from', 'init_cfg'])
def test_fine_tuning_to_other_classes_starts_at_the_right_loss(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, network: str, how: str
) -> None:
    """The body is the checkpoint's, and the new head gives all classes about the same odds."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv('LOCAL_RANK', '0')
    num_classes = 7
    cfg = Config.fromfile(CONFIGS[network])
    cfg.merge_from_dict(
        {
            'model.head.num_classes': num_classes,
            'data_preprocessor.num_classes': num_classes,
            'work_dir': f'tuned_{network}_{how}',
            'experiment_name': f'tuned_{network}_{how}',
            'train_dataloader.batch_size': 4,
        }
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, collate_fn=dict(type='default_collate'))
    cfg.pop('test_dataloader'), cfg.pop('test_cfg'), cfg.pop('test_evaluator')
    source = make_source(cfg, workspace / f'source_{network}.pth')
    if how == 'load_from':
        cfg.load_from = str(source)
    else:
        cfg.model.init_cfg = dict(type='mmvit_backbones.Pretrained', checkpoint=str(source))
    runner = Runner.from_cfg(cfg)

    def stop(data: Any, optim_wrapper: Any) -> None:
        loaded = copy.deepcopy(runner.model.state_dict())
        data = runner.model.data_preprocessor(data, training=True)
        raise FirstLoss(loaded, runner.model(**data, mode='loss')['loss'].item())

    monkeypatch.setattr(runner.model, 'train_step', stop)
    with pytest.raises(FirstLoss) as caught:
        runner.train()
    loaded, loss = caught.value.args
    assert loss == pytest.approx(math.log(num_classes), abs=0.3)
    wanted = torch.load(source, weights_only=True)
    for name, value in wanted['state_dict'].items():
        if not name.startswith('head.'):
            torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)
    assert loaded['head.fc.weight'].shape[0] == num_classes


def make_source(cfg: Config, path: Path) -> Path:
    """A checkpoint of ours with another number of classes and weights unlike the initial ones."""
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    config = copy.deepcopy(cfg.model)
    config.head.num_classes = 3
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
    generator = torch.Generator().manual_seed(1)
    state = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in model.state_dict().items()
    }
    torch.save({'state_dict': state, 'meta': {}}, path)
    return path
