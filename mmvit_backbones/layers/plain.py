"""Whether calling a module does no more than its class's formula on its own parameters."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.modules.module as torch_module
from torch import Tensor, nn

PLAIN_PACKAGES = ('torch.nn.modules.', 'mmcv.', 'mmvit_backbones.')
PLAIN_TENSORS: frozenset[type] = frozenset((Tensor, nn.Parameter, type(None)))


def is_plain(module: nn.Module, tensor_classes: Collection[type] = PLAIN_TENSORS) -> bool:
    """Whether a module and its children are as PyTorch, mmcv or this package define them.

    A subclass from elsewhere (adapters, quantized layers), a parametrization, a hook, a `forward`
    set on the instance or a parameter that is no ordinary tensor makes a module not plain.

    The check takes less than a microsecond per module, so its result need not be cached.

    Args:
        module: The module.
        tensor_classes: Classes of ordinary tensors.
    """
    state = module.__dict__
    if not type(module).__module__.startswith(PLAIN_PACKAGES) or 'forward' in state:
        return False
    if (
        state['_forward_hooks']
        or state['_forward_pre_hooks']
        or state['_backward_hooks']
        or state['_backward_pre_hooks']
    ):
        return False
    for tensors in (state['_parameters'], state['_buffers']):
        for tensor in tensors.values():
            if type(tensor) not in tensor_classes:
                return False
    for child in state['_modules'].values():
        if child is not None and not is_plain(child, tensor_classes):
            return False
    return True


def has_global_hooks() -> bool:
    """Whether a hook is registered for all modules of this process."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
