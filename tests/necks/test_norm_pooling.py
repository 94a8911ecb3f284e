"""NormAveragePooling against the same written out."""

from __future__ import annotations

import torch
from torch import nn

from mmvit_backbones.necks import NormAveragePooling
from mmvit_backbones.registry import MODELS
from tests.utils import max_error, randomize


@torch.no_grad()
def test_equals_norm_and_mean_written_out() -> None:
    neck = randomize(NormAveragePooling(5)).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    deviation = (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    weight, bias = neck.norm.weight.view(1, 5, 1, 1), neck.norm.bias.view(1, 5, 1, 1)
    expected = (centred / deviation * weight + bias).mean(dim=(2, 3))
    outputs = neck([torch.zeros(2, 1, 9, 9), x])
    assert len(outputs) == 1
    assert max_error(outputs[0], expected) <= 1e-12


def test_without_a_norm() -> None:
    neck = MODELS.build(dict(type='mmvit_backbones.NormAveragePooling', in_channels=5, norm=False))
    assert isinstance(neck.norm, nn.Identity)
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(neck([x])[0], x.mean(dim=(2, 3)))
