"""Weights whose values a model cannot take over."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones import create_model, load_checkpoint
from mmvit_backbones.checkpoints import CheckpointError

NAME = 'blocks.0.attn.proj.weight'


@pytest.fixture(scope='module')
def model() -> torch.nn.Module:
    return create_model('xcit_nano_12_p16')


@pytest.fixture
def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize('dtype', [torch.complex64, torch.int64, torch.bool])
def test_other_class_of_numbers(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    before = {name: value.clone() for name, value in weights.items()}
    weights[NAME] = weights[NAME].to(dtype)
    with pytest.raises(CheckpointError, match=rf'1 \({NAME} {dtype} -> torch.float32\)'):
        load_checkpoint(model, weights)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_floating_point_into_integers(
    model: torch.nn.Module, weights: dict[str, torch.Tensor]
) -> None:
    name = next(name for name, value in weights.items() if not value.is_floating_point())
    weights[name] = weights[name].float()
    with pytest.raises(CheckpointError, match='another class of numbers'):
        load_checkpoint(model, weights)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    weights[NAME] = weights[NAME].to(dtype)
    assert NAME in load_checkpoint(model, weights).loaded


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_not_finite(model: torch.nn.Module, weights: dict[str, torch.Tensor], value: float) -> None:
    weights[NAME][0, 0] = value
    report = load_checkpoint(model, weights)
    assert f'NaN or infinite values in 1 ({NAME})' in report.notes


@pytest.mark.parametrize('kind', ['meta', 'sparse'])
def test_no_values(model: torch.nn.Module, weights: dict[str, torch.Tensor], kind: str) -> None:
    value = weights[NAME]
    weights[NAME] = value.to('meta') if kind == 'meta' else value.to_sparse()
    with pytest.raises(CheckpointError, match=rf'dense tensors with values: 1 \({NAME}\)'):
        load_checkpoint(model, weights)
