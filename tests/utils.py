"""What several tests need."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and BatchNorm statistic a random value of a sensible size.

    Default initial values (ones, zeros, 1e-5) would hide a norm, bias or scale in the wrong place.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.ndim > 1 and min(value.shape[:2]) > 1:
                fan_in = value[0].numel()
                value.copy_(noise / fan_in**0.5)
            elif name.endswith('bias'):
                value.copy_(0.2 * noise)
            else:  # scales, variances, temperatures: positive
                value.copy_(1 + 0.2 * noise.tanh())
    return module


def max_error(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape."""
    assert ours.shape == reference.shape, f'{tuple(ours.shape)} against {tuple(reference.shape)}'
    return float((ours - reference).detach().abs().max())
