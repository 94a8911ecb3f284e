"""LocalPatchInteraction in both orders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvit_backbones.layers.local_patch_interaction import LocalPatchInteraction
from mmvit_backbones.layers.tokens import to_map, to_tokens
from tests.utils import max_error, randomize


@pytest.mark.parametrize('norm_first', [False, True])
@pytest.mark.parametrize('kernel_size', [3, 5])
@torch.no_grad()
def test_order_of_norm_and_activation(norm_first: bool, kernel_size: int) -> None:
    layer = LocalPatchInteraction(4, dict(type='BN'), norm_first, kernel_size)
    randomize(layer).double().eval()
    middle = [layer.bn, nn.GELU()] if norm_first else [nn.GELU(), layer.bn]
    written_out = nn.Sequential(layer.conv1, *middle, layer.conv2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert max_error(to_map(layer(to_tokens(x), (5, 6)), (5, 6)), written_out(x)) <= 1e-12


def test_channels_do_not_mix() -> None:
    layer = LocalPatchInteraction(4, dict(type='BN')).eval()
    x = torch.randn(1, 30, 4, requires_grad=True)
    layer(x, (5, 6))[..., 2].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=(0, 1)).bool().tolist() == [False, False, True, False]


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match='lpi_kernel_size must be odd, got 2'):
        LocalPatchInteraction(4, dict(type='BN'), kernel_size=2)
