"""Position encodings against their formulas, at any size and precision."""

from __future__ import annotations

from math import cos, pi, sin

import pytest
import torch
import torch.nn.functional as F

from mmvit_backbones.layers.position import FourierPosition, LearnedPosition, fourier_features
from mmvit_backbones.layers.tokens import to_tokens
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
    x = torch.randn(2, size[0] * size[1], 6, dtype=torch.float64)
    expected = x + module.token_projection(features.permute(2, 0, 1)).flatten(1).t()
    assert max_error(module(x, size), expected) <= 1e-12


def test_position_keeps_its_precision_under_autocast() -> None:
    x = torch.zeros(1, 28, 6)
    for module in (FourierPosition(6), LearnedPosition(6, (3, 3))):
        expected = module(x, (4, 7))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(module(x, (4, 7)), expected)


def test_learned_position_is_the_table_on_its_own_grid() -> None:
    module = LearnedPosition(6, (4, 7))
    out = module(torch.zeros(2, 28, 6), (4, 7))
    assert torch.equal(out, module.table.flatten(1, 2).expand(2, -1, -1))


@pytest.mark.parametrize('size', [(7, 4), (4, 8), (9, 14), (2, 2)])
def test_learned_position_is_interpolated_for_another_grid(size: tuple[int, int]) -> None:
    module = LearnedPosition(6, (4, 7))
    out = module(torch.zeros(1, size[0] * size[1], 6), size)
    expected = F.interpolate(module.table.permute(0, 3, 1, 2), size, mode='bicubic')
    torch.testing.assert_close(out, to_tokens(expected))
    out.square().sum().backward()
    assert module.table.grad is not None


def test_learned_position_of_a_constant_is_that_constant() -> None:
    module = LearnedPosition(6, (4, 7))
    torch.nn.init.constant_(module.table, 1.5)
    out = module(torch.zeros(1, 55, 6), (11, 5))
    torch.testing.assert_close(out, torch.full_like(out, 1.5))


def test_half_precision_modules() -> None:
    for module in (FourierPosition(6), LearnedPosition(6, (3, 3))):
        out = module.bfloat16()(torch.zeros(1, 28, 6, dtype=torch.bfloat16), (4, 7))
        assert out.dtype == torch.bfloat16
