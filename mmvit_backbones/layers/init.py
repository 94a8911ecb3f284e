"""Initialisation shared by the two networks' authors."""

from __future__ import annotations

from math import sqrt

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Initialise all linear layers below a module: truncated normal of deviation 0.02, bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_conv_by_fan_out(module: nn.Module) -> None:
    """Initialise all convolutions below a module: normal of variance 2 / fan-out, bias 0.

    The fan-out is that of one group, unlike in `torch.nn.init.kaiming_normal_`.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[0, 0].numel() * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
