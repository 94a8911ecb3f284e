"""Keeping numerically delicate steps out of reduced precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which autocast leaves operations in the precision of their inputs."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # such as the meta device, which autocast refuses


def can_use_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's oneDNN operations take tensors of a dtype on a device."""
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:  # older processors refuse it
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x`, as float32 where it holds half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer works on `x`: autocast's, where it is on.

    Autocast leaves float64 alone.
    """
    device = x.device.type
    if (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        return torch.get_autocast_dtype(device)
    return x.dtype
