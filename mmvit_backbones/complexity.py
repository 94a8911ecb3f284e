"""Count what a forward pass computes, without computing it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_multiply_adds(model: nn.Module, height: int, width: int, in_channels: int = 3) -> int:
    """Count the multiply-adds of one image.

    Counted are convolutions, linear layers and all other matrix products, those inside attention
    included; one multiplication with its addition is one. Norms, activations, softmax and pooling
    are not counted, as usual. This is what papers mostly call FLOPs, and half of what PyTorch's
    counter returns.

    Args:
        model: A model from images (B, in_channels, H, W).
        height: Rows of the image in pixels.
        width: Columns of the image in pixels.
        in_channels: Channels of the image.
    """
    model = copy.deepcopy(model).to('meta').eval().requires_grad_(False)
    x = torch.empty(1, in_channels, height, width, device='meta')
    # The counter sees into attention only where it is made of matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
