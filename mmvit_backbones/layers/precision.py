"""Keeping numerically delicate steps out of reduced precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which autocast leaves operations in the precision of their inputs."""
    if device.type == 'meta':  # autocast refuses it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x`, as float32 where it holds half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
