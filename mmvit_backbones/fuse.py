"""Models for inference, with everything folded that is constant by then."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar('Model', bound=nn.Module)


def fuse(model: Model) -> Model:
    """Return a copy of a model for inference, which computes the same with fewer steps.

    Each layer folds what it can: LayerScale into the last layer of its branch, the affine part of
    a norm into the linear layers that read its output, BatchNorm into the convolution before it.
    Layers that are quantized, adapted or hooked stay as they are, and so do norms whose output is
    zero-padded afterwards, where a shift would become visible at the border. The copy cannot be
    trained, and its state dict does not fit the original.

    Args:
        model: A backbone, a classifier, or any model that holds one.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fused.modules()):
        if type(module).__module__.startswith(__package__) and hasattr(module, 'fold'):
            module.fold()  # type: ignore[operator]
    return fused
