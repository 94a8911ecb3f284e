"""Whether calling a module does exactly what its class defines, with its own parameters."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.modules.module as torch_module
from torch import Tensor, nn

PLAIN_PACKAGES = ('torch.nn.modules.', 'mmcv.', 'mmvit_backbones.')
PLAIN_TENSORS: frozenset[type] = frozenset((Tensor, nn.Parameter, type(None)))


def why_not_plain(
    module: nn.Module, tensor_classes: Collection[type] = PLAIN_TENSORS
) -> str | None:
    """Return why a module or a child is not as torch.nn.modules, mmcv or this package define it.

    The reasons: a class from elsewhere (adapters, quantized layers, parametrizations), a hook, a
    `forward` set on the instance, a parameter or buffer that is a tensor subclass.

    The check takes less than a microsecond per module, so its result need not be cached.

    Args:
        module: The module.
        tensor_classes: Classes of ordinary tensors.

    Returns:
        The reason, None if the module is plain.
    """
    state = module.__dict__
    if not type(module).__module__.startswith(PLAIN_PACKAGES):
        return f'the class {type(module).__name__} is not of torch.nn.modules, mmcv or this package'
    if 'forward' in state:
        return f'a {type(module).__name__} has a forward of its own'
    if (
        state['_forward_hooks']
        or state['_forward_pre_hooks']
        or state['_backward_hooks']
        or state['_backward_pre_hooks']
    ):
        return f'a {type(module).__name__} has a hook'
    for tensors in (state['_parameters'], state['_buffers']):
        for tensor in tensors.values():
            if type(tensor) not in tensor_classes:
                return f'a {type(module).__name__} holds a {type(tensor).__name__}'
    for child in state['_modules'].values():
        if child is not None and (reason := why_not_plain(child, tensor_classes)):
            return reason
    return None


def is_plain(module: nn.Module) -> bool:
    """Whether `why_not_plain` has no reason against a module."""
    return why_not_plain(module) is None


def has_global_hooks() -> bool:
    """Whether a hook is registered for all modules of this process."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
