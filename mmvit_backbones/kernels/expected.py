"""Whether the modules of a layer are in a class and a state that its kernel knows.

A user may have replaced an inner layer by another class of PyTorch, such as `nn.Identity`.
"""

from __future__ import annotations

from torch import nn


def why_other_class(kind: type[nn.Module], *modules: nn.Module) -> str | None:
    """Return a message about the first module that is not exactly of a class; None if all are."""
    for module in modules:
        if type(module) is not kind:
            return f'a module is a {type(module).__name__}, not a {kind.__name__}'
    return None


def drops(*dropouts: nn.Dropout) -> bool:
    """Whether any of these dropouts sets values to zero, by its own `training`."""
    return any(dropout.training and dropout.p > 0 for dropout in dropouts)


def why_no_bias(*layers: nn.Linear) -> str | None:
    """Return a message if a linear layer has no bias; None if all have one."""
    return 'a linear layer has no bias' if any(layer.bias is None for layer in layers) else None


def why_other_padding(*layers: nn.Conv2d) -> str | None:
    """Return a message if a convolution does not pad by a number of zeros; None if all do."""
    if any(isinstance(conv.padding, str) or conv.padding_mode != 'zeros' for conv in layers):
        return 'a convolution does not pad by a number of zeros'
    return None
