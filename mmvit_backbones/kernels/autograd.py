"""What kernels ask of the state of autograd and autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

HOW_TO_SWITCH = (
    "mmvit_backbones.kernels.use('reference') or the environment variable MMVIT_KERNELS=reference"
)


def refuse_second_derivative() -> None:
    """Raise an error inside a backward pass that is itself differentiated (`create_graph=True`).

    Raises:
        RuntimeError: If autograd records the backward pass.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            'the kernels of mmvit_backbones have no second derivative (create_graph=True); choose '
            f'the reference before the forward pass: {HOW_TO_SWITCH}'
        )


def is_transformed() -> bool:
    """Whether forward-mode derivatives or `torch.func` transforms are active."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer works on `x`: autocast's, where it is on.

    Autocast leaves float64 alone.
    """
    if x.dtype == torch.float64:
        return x.dtype
    return _autocast_dtype(x.device.type) or x.dtype


def _autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype of autocast on a device; None where it is off."""
    if hasattr(torch, 'get_autocast_dtype'):  # since 2.4
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return None
        return torch.get_autocast_dtype(device)
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
