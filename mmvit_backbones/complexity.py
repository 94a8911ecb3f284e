"""Count what a forward pass computes, without computing it."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvit_backbones import kernels


def count_multiply_adds(model: nn.Module, height: int, width: int, in_channels: int = 3) -> int:
    """Count the multiply-adds of one image.

    Counted are convolutions, linear layers and all other matrix products, those inside attention
    included, as the layers are written (`kernels.use('reference')`). One multiplication with its
    addition is one. Norms, activations, softmax and pooling are not counted, as usual. This is what
    papers mostly call FLOPs, and half of what PyTorch's counter returns.

    Args:
        model: A model from images (B, in_channels, H, W).
        height: Rows of the image in pixels.
        width: Columns of the image in pixels.
        in_channels: Channels of the image.
    """
    model = copy.deepcopy(model).to('meta').eval().requires_grad_(False)
    x = torch.empty(1, in_channels, height, width, device='meta')
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), kernels.use('reference'), plain_attention(), counter:
        model(x)
    return counter.get_total_flops() // 2


def plain_attention() -> AbstractContextManager[None]:
    """Make PyTorch's own attention of matrix products, into which the counter sees."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before torch 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
