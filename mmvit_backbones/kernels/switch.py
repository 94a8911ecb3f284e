"""The public switch of the kernels."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from mmvit_backbones.kernels.dispatch import KERNELS, Choice, Dispatcher
from mmvit_backbones.layers.seam import get_dispatcher, set_dispatcher, use_dispatcher

AUTO, REFERENCE = MODES = ('auto', 'reference')
VARIABLE = 'MMVIT_KERNELS'


class use(AbstractContextManager[None]):  # noqa: N801, reads as a verb
    """Choose what this process computes with, from now on or for the time of a context.

    Args:
        mode: `'auto'`: kernels where they serve. `'reference'`: the layers as they are written.
        disable: Names of kernels that do not run in mode `'auto'`, of `KERNELS`.

    Raises:
        ValueError: If `mode` or a name in `disable` is not known.

    Example:
        >>> use('reference')  # until the next call
        >>> with use('auto', disable=('norm_mlp',)):
        ...     model(images)
    """

    def __init__(self, mode: str, disable: Collection[str] = ()) -> None:
        if mode not in MODES:
            raise ValueError(f'mode must be one of {MODES}, got {mode!r}')
        disable = (disable,) if isinstance(disable, str) else disable
        unknown = sorted(set(disable) - set(KERNELS))
        if unknown:
            raise ValueError(f'disable must hold names of {KERNELS}, got {unknown}')
        self._before = get_dispatcher()
        set_dispatcher(Dispatcher(disable) if mode == AUTO else None)

    def __exit__(self, *exception: Any) -> None:
        set_dispatcher(self._before)


def use_environment() -> None:
    """Choose what the environment variable `MMVIT_KERNELS` says, `'auto'` by default.

    Raises:
        ValueError: If it is neither `'auto'` nor `'reference'`.
    """
    mode = os.environ.get(VARIABLE, AUTO)
    if mode not in MODES:
        raise ValueError(f'{VARIABLE} must be one of {MODES}, got {mode!r}')
    use(mode)


class Path(NamedTuple):
    """What a layer ran.

    Attributes:
        layer: Name of the layer in the model; that of the function where it belongs to none.
        path: Name of the kernel, or `'reference'`.
        reason: Why no kernel ran; empty if one did.
    """

    layer: str
    path: str
    reason: str


def explain(model: nn.Module, *inputs: Any) -> list[Path]:
    """Run a model once and print which path each of its layers takes, and why.

    Args:
        model: Any model that holds layers of this package.
        inputs: Arguments of its forward.

    Returns:
        One entry for each choice, in the order of the calls.
    """
    names = {module: name for name, module in model.named_modules()}
    dispatcher = get_dispatcher()
    record: list[Choice] = []
    if isinstance(dispatcher, Dispatcher):
        dispatcher = Dispatcher(dispatcher.disabled, record)
    with use_dispatcher(dispatcher):
        model(*inputs)
    if dispatcher is None:
        print('kernels are off: all layers run the reference')
    paths = [
        Path(
            choice.function.__name__ if choice.module is None else names[choice.module],
            'reference' if choice.kernel is None else choice.kernel.name,
            choice.reason,
        )
        for choice in record
    ]
    width = max((len(path.layer) for path in paths), default=0)
    for path in paths:
        print(f'{path.layer:{width}}  {path.path:17}{path.reason}'.rstrip())
    return paths
