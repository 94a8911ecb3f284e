"""PyTorch's fused attention, for `layers.attention.attention`.

It forms no matrix of attention weights. On some devices it has no second derivative, so asking for
one is an error on all.

In half precision on a CPU its backward pass takes 2 to 11 times that of the reference, unless heads
have many tokens and all their weights are too many for memory that the allocator keeps. Inference
takes the time of the reference, and less memory where the weights are the largest tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.expected import drops
from mmvit_backbones.kernels.modes import EXPORT, TRAINING, is_static

HALF = (torch.bfloat16, torch.float16)
# In half precision on a CPU, it serves from so many weights of a head, and so many bytes of all
# weights: glibc gives larger blocks back to the system.
MIN_WEIGHTS, MIN_BYTES = 2**16, 2**25
MIN_BYTES_OF_INFERENCE = 2**23  # without gradients, for heads of any size


def refusal(
    mode: str, q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, mask: Tensor | None = None
) -> str | None:
    """Return why the kernel does not serve a call; None if it does."""
    if type(dropout) is not nn.Dropout:
        return 'the dropout is not nn.Dropout'
    dtype = compute_dtype(q)
    if mode == EXPORT or q.device.type != 'cpu' or dtype not in HALF:
        return None
    batch, heads, queries, keys = *q.shape[:3], k.shape[2]
    if not is_static(batch, heads, queries, keys):
        return None  # the sizes may be large
    weights = queries * keys
    num_bytes = batch * heads * weights * dtype.itemsize
    if not torch.is_grad_enabled() and num_bytes >= MIN_BYTES_OF_INFERENCE:
        return None
    if weights >= MIN_WEIGHTS and num_bytes >= MIN_BYTES:
        return None
    return 'in half precision on a CPU the reference is faster for so few attention weights'


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
