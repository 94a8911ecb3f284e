"""The counter of multiply-adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmvit_backbones.complexity import count_multiply_adds, count_parameters


class Attention(nn.Module):
    """Pixels attend to each other: two products of (N, N) by C."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return scaled_dot_product_attention(tokens, tokens, tokens)


def test_convolution_linear_and_attention() -> None:
    assert count_multiply_adds(nn.Conv2d(3, 8, 3, padding=1), 10, 6) == 10 * 6 * 8 * 3 * 9
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 7))
    assert count_multiply_adds(linear, 4, 5) == 3 * 4 * 5 * 7
    assert count_multiply_adds(Attention(), 4, 5, in_channels=8) == 2 * 20 * 20 * 8


def test_the_model_is_left_alone() -> None:
    model = nn.Conv2d(3, 2, 1).train()
    count_multiply_adds(model, 4, 4)
    assert model.training
    assert model.weight.device == torch.device('cpu')
    assert model.weight.requires_grad
    assert count_parameters(model) == 3 * 2 + 2
