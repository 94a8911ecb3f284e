"""A loss that is no number stops the run at once, and its weights stay."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmvit_backbones.engine import FiniteLossHook, NonFiniteError

RUNS = itertools.count()


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(1, 1, bias=False)
        self.other = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        return {'loss': self.fc(torch.stack(inputs)).mean() + 7 * self.other.sum()}


class Images(Dataset):
    """Pixels, the sixth of them spoilt."""

    def __init__(self, spoilt: float) -> None:
        self.values = [1.0, 2.0, 3.0, 4.0, 5.0, spoilt, 7.0, 8.0]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = SimpleNamespace(img_path=f'image_{index}.jpg')
        return {'inputs': torch.tensor([self.values[index]]), 'data_samples': sample}


def make_runner(work_dir: Path, spoilt: float, **optim_wrapper: Any) -> Runner:
    return Runner(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader={
            'batch_size': 2,
            'num_workers': 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
            'dataset': Images(spoilt),
        },
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.0}, **optim_wrapper},
        default_hooks={'finite_loss': {'type': 'mmvit_backbones.FiniteLossHook'}},
        experiment_name=f'finite_loss_{next(RUNS)}',
        log_level='ERROR',
    )


def test_is_registered_for_every_toolkit() -> None:
    assert HOOKS.get('mmvit_backbones.FiniteLossHook') is FiniteLossHook


@pytest.mark.parametrize('spoilt', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('accumulative_counts', [1, 2])
def test_stops_at_the_iteration(tmp_path: Path, spoilt: float, accumulative_counts: int) -> None:
    runner = make_runner(tmp_path, spoilt, accumulative_counts=accumulative_counts)
    weights = {name: value.clone() for name, value in runner.model.state_dict().items()}
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    message = str(caught.value)
    assert 'at iteration 3 (epoch 1)' in message
    assert 'images: image_4.jpg, image_5.jpg' in message
    assert '1 of 2 gradients are not finite, the largest other is' in message
    assert 'of other' in message
    assert '\n' not in message
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)


def test_finite_loss_passes(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, 6.0)
    runner.train()
    assert runner.iter == 4


def test_gradients_are_named_where_they_are_finite(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, 6.0)
    forward = runner.model.forward
    runner.model.forward = lambda *args, **kwargs: {
        'loss': forward(*args, **kwargs)['loss'] + torch.tensor(torch.inf)
    }
    with pytest.raises(NonFiniteError, match='the largest gradient is 7 of other'):
        runner.train()
