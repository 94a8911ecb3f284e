"""PyTorch's fused attention, for `layers.attention.attention`.

It forms no matrix of attention weights. On some devices it has no second derivative, so asking for
one is an error on all.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.kernels.autograd import refuse_second_derivative
from mmvit_backbones.kernels.expected import drops
from mmvit_backbones.kernels.modes import TRAINING


def refusal(
    mode: str, q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, mask: Tensor | None = None
) -> str | None:
    """Return why the kernel does not serve a call; None if it does."""
    return None if type(dropout) is nn.Dropout else 'the dropout is not nn.Dropout'


def run(
    mode: str, q: Tensor, k: Tensor, v: Tensor, dropout: nn.Dropout, mask: Tensor | None = None
) -> Tensor:
    """Compute what the reference computes."""
    drop_rate = dropout.p if drops(dropout) else 0.0
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=drop_rate)
    if mode == TRAINING and out.requires_grad:
        out.register_hook(_refuse_second_derivative)
    return out


def _refuse_second_derivative(grad: Tensor) -> None:
    refuse_second_derivative()
