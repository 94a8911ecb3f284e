"""Position encodings: values at any size, what is cached and what is stored."""

from __future__ import annotations

import copy
import pickle
from math import cos, pi, sin

import pytest
import torch
import torch.nn.functional as F

from mmvit_backbones.layers import position
from mmvit_backbones.layers.position import FourierPosition, LearnedPosition, fourier_features
from tests.utils import max_error, randomize


def test_fourier_features_equal_the_formula() -> None:
    features = fourier_features(5, 32, torch.device('cpu'))
    assert features.shape == (5, 32)
    for row in range(5):
        angle = 2 * pi * (row + 1) / 5
        for i in range(16):
            wavelength = 10000 ** (2 * i / 32)
            assert abs(float(features[row, 2 * i]) - sin(angle / wavelength)) < 1e-5
            assert abs(float(features[row, 2 * i + 1]) - cos(angle / wavelength)) < 1e-5


@pytest.mark.parametrize('size', [(1, 1), (4, 7), (9, 3)])
@torch.no_grad()
def test_fourier_position_is_a_projection_of_rows_and_columns(size: tuple[int, int]) -> None:
    module = randomize(FourierPosition(6)).double()
    rows, columns = (fourier_features(n, 32, torch.device('cpu')).double() for n in size)
    features = torch.cat(
        (
            rows[:, None].expand(*size, 32),
            columns[None].expand(*size, 32),
        ),
        dim=-1,
    )
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    expected = x + module.token_projection(features.permute(2, 0, 1)).permute(1, 2, 0)
    assert max_error(module(x), expected) <= 1e-12


def test_fourier_features_are_computed_once_for_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def counting(length: int, dims: int, device: torch.device) -> torch.Tensor:
        lengths.append(length)
        return fourier_features(length, dims, device)

    monkeypatch.setattr(position, 'fourier_features', counting)
    module = FourierPosition(6)
    for size in [(4, 7), (4, 7), (7, 4), (4, 9)]:
        module(torch.zeros(1, *size, 6))
    assert lengths == [4, 7, 9]
    module.double()(torch.zeros(1, 4, 4, 6, dtype=torch.float64))
    assert lengths == [4, 7, 9, 4]


def test_cache_is_not_stored_or_copied() -> None:
    module = FourierPosition(6)
    x = torch.randn(1, 4, 7, 6)
    expected = module(x)
    assert module.state_dict().keys() == {'token_projection.weight', 'token_projection.bias'}
    plain_size = len(pickle.dumps(FourierPosition(6)))
    assert len(pickle.dumps(module)) == plain_size
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)


def test_what_inference_mode_cached_serves_training() -> None:
    module = FourierPosition(6)
    x = torch.zeros(1, 4, 7, 6)
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()
    assert module.token_projection.weight.grad is not None


def test_position_keeps_its_precision_under_autocast() -> None:
    x = torch.zeros(1, 4, 7, 6)
    for module in (FourierPosition(6), LearnedPosition(6, (3, 3))):
        expected = module(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(module(x), expected)


def test_learned_position_is_the_table_on_its_own_grid() -> None:
    module = LearnedPosition(6, (4, 7))
    assert torch.equal(module(torch.zeros(2, 4, 7, 6)), module.table.expand(2, -1, -1, -1))


@pytest.mark.parametrize('size', [(7, 4), (4, 8), (9, 14), (2, 2)])
def test_learned_position_is_interpolated_for_another_grid(size: tuple[int, int]) -> None:
    module = LearnedPosition(6, (4, 7))
    out = module(torch.zeros(1, *size, 6))
    expected = F.interpolate(module.table.permute(0, 3, 1, 2), size, mode='bicubic')
    torch.testing.assert_close(out, expected.permute(0, 2, 3, 1))
    out.square().sum().backward()
    assert module.table.grad is not None


def test_learned_position_of_a_constant_is_that_constant() -> None:
    module = LearnedPosition(6, (4, 7))
    torch.nn.init.constant_(module.table, 1.5)
    out = module(torch.zeros(1, 11, 5, 6))
    torch.testing.assert_close(out, torch.full_like(out, 1.5))


def test_half_precision_modules() -> None:
    for module in (FourierPosition(6), LearnedPosition(6, (3, 3))):
        out = module.bfloat16()(torch.zeros(1, 4, 7, 6, dtype=torch.bfloat16))
        assert out.dtype == torch.bfloat16
