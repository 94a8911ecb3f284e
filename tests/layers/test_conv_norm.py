"""Convolution with folded BatchNorm and fused GELU against the three layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvit_backbones.layers.conv_norm import conv_norm
from tests.utils import max_error, randomize

NORMS = {
    'none': lambda: nn.Identity(),
    'batch': lambda: nn.BatchNorm2d(6),
    'plain batch': lambda: nn.BatchNorm2d(6, affine=False),
    'batch without statistics': lambda: nn.BatchNorm2d(6, track_running_stats=False),
    'group': lambda: nn.GroupNorm(2, 6),
}


@pytest.mark.parametrize('norm_name', NORMS)
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('activate', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_equals_the_layers(
    norm_name: str, groups: int, bias: bool, activate: bool, training: bool
) -> None:
    conv = nn.Conv2d(4, 6, 3, 2, 1, groups=groups, bias=bias)
    norm = NORMS[norm_name]()
    layers = randomize(nn.ModuleList([conv, norm])).train(training).double()
    x = torch.randn(2, 4, 9, 7).contiguous(memory_format=torch.channels_last)
    expected = norm(conv(x.double()))
    expected = F.gelu(expected) if activate else expected
    results = []
    for out in (conv_norm(x.double(), conv, norm, activate), expected):
        gradients = torch.autograd.grad(out.pow(2).sum(), list(layers.parameters()))
        results.append([out.detach(), *gradients])
    for ours, reference in zip(*results, strict=True):
        assert max_error(ours, reference) <= 1e-10 * max(1, float(reference.abs().max()))
    layers.float()
    with torch.no_grad():
        torch.testing.assert_close(
            conv_norm(x, conv, norm, activate), results[1][0].float(), atol=1e-5, rtol=1e-5
        )
        with torch.autocast('cpu', dtype=torch.bfloat16):
            half = conv_norm(x, conv, norm, activate)
    torch.testing.assert_close(half.float(), results[1][0].float(), atol=0.05, rtol=0.03)


def test_training_updates_the_running_statistics() -> None:
    conv, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    conv_norm(torch.randn(2, 4, 9, 7), conv, norm)
    assert norm.num_batches_tracked == 1
    assert norm.running_mean is not None
    assert norm.running_mean.abs().min() > 0
