"""Whether weights have values that a model can take over."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmvit_backbones.checkpoints.errors import CheckpointError, some_of


def check_values(loaded: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Check the values that are about to be copied into a model.

    A copy into a tensor of another class would change them: integers and complex numbers into
    floating point, or the other way. Another precision of the same class is fine.

    Args:
        loaded: The model's names -> weights.
        target: The model's tensors.

    Returns:
        Notes for the report: which weights are NaN or infinite. They are logged as a warning too.

    Raises:
        CheckpointError: If weights are of another class than the model's, or have no values that
            can be copied: sparse tensors, and those on the meta device unless the model is there.
    """
    has_values = not any(value.is_meta for value in target.values())
    empty = [
        name
        for name, value in loaded.items()
        if (has_values and value.is_meta) or value.layout != torch.strided
    ]
    if empty:
        raise CheckpointError(
            f'weights must be dense tensors with values: {some_of(empty)} are not'
        )
    others = [
        f'{name} {value.dtype} -> {target[name].dtype}'
        for name, value in loaded.items()
        if _kind(value) != _kind(target[name])
    ]
    if others:
        raise CheckpointError(f'weights of another class of numbers: {some_of(others)}')
    broken = [
        name
        for name, value in loaded.items()
        if not value.is_meta and not bool(torch.isfinite(value).all())
    ]
    if not broken:
        return []
    note = f'NaN or infinite values in {some_of(broken)}'
    print_log(note, logger='current', level=logging.WARNING)
    return [note]


def _kind(value: Tensor) -> str:
    if value.dtype.is_complex:
        return 'complex'
    if value.dtype.is_floating_point:
        return 'floating'
    return 'bool' if value.dtype == torch.bool else 'integer'
