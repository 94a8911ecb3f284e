"""Norms of maps by norm_cfg."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvit_backbones.layers.norm import build_norm
from tests.utils import max_error, randomize


@torch.no_grad()
def test_layer_norm_is_over_the_channels() -> None:
    norm = randomize(build_norm(dict(type='LN', eps=1e-3), 5)).double()
    x = torch.randn(2, 5, 3, 5, dtype=torch.float64)
    reference = nn.LayerNorm(5, eps=1e-3).double()
    reference.load_state_dict(norm.state_dict(), strict=True)
    expected = reference(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert max_error(norm(x), expected) <= 1e-12


def test_settings_reach_the_norm() -> None:
    batch_norm = build_norm(dict(type='BN', momentum=0.02, requires_grad=False), 6)
    assert isinstance(batch_norm, nn.BatchNorm2d)
    assert batch_norm.momentum == 0.02
    assert not any(p.requires_grad for p in batch_norm.parameters())
    assert isinstance(build_norm(dict(type='SyncBN'), 6), nn.SyncBatchNorm)
    group_norm = build_norm(dict(type='GN', num_groups=3), 6)
    assert isinstance(group_norm, nn.GroupNorm)
    assert group_norm.num_groups == 3


def test_config_is_left_as_it_was() -> None:
    norm_cfg = dict(type='LN')
    build_norm(norm_cfg, 4)
    assert norm_cfg == dict(type='LN')


@pytest.mark.parametrize('norm_cfg', ['BN', None, dict(eps=1e-5)])
def test_bad_config(norm_cfg: object) -> None:
    with pytest.raises(ValueError, match=r'norm_cfg must be a dict with the key "type", got'):
        build_norm(norm_cfg, 4)
