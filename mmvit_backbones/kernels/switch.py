"""The public switch of the kernels."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from mmvit_backbones.kernels.dispatch import KERNEL_NAMES, Choice, Dispatcher
from mmvit_backbones.layers.seam import get_dispatcher, set_dispatcher, use_dispatcher

AUTO, REFERENCE = 'auto', 'reference'
SETTINGS = (AUTO, REFERENCE)
VARIABLE = 'MMVIT_KERNELS'


class use(AbstractContextManager[None]):  # noqa: N801, reads as a verb
    """Choose what this process computes with, from now on or for the time of a context.

    The call itself installs the setting, and replaces what an earlier one chose, `disable`
    included. As a context manager it restores the setting from before at its end.

    Args:
        setting: `'auto'`: kernels where they serve. `'reference'`: the layers as they are written.
        disable: Names of kernels that do not run under `'auto'`, of `KERNEL_NAMES`.

    Raises:
        ValueError: If `setting` or a name in `disable` is not known.

    Example:
        >>> use('reference')  # until the next call
        >>> with use('auto', disable=('norm_mlp',)):
        ...     model(images)
    """

    def __init__(self, setting: str, disable: Collection[str] = ()) -> None:
        if setting not in SETTINGS:
            raise ValueError(f'setting must be one of {SETTINGS}, got {setting!r}')
        disable = (disable,) if isinstance(disable, str) else disable
        unknown = sorted(set(disable) - set(KERNEL_NAMES))
        if unknown:
            raise ValueError(f'disable must hold names of {KERNEL_NAMES}, got {unknown}')
        self._before = get_dispatcher()
        set_dispatcher(Dispatcher(disable) if setting == AUTO else None)

    def __exit__(self, *exception: Any) -> None:
        set_dispatcher(self._before)


def use_environment() -> None:
    """Choose what the environment variable `MMVIT_KERNELS` says, `'auto'` by default.

    Raises:
        ValueError: If it is neither `'auto'` nor `'reference'`.
    """
    setting = os.environ.get(VARIABLE, AUTO)
    if setting not in SETTINGS:
        raise ValueError(f'{VARIABLE} must be one of {SETTINGS}, got {setting!r}')
    use(setting)


class Path(NamedTuple):
    """What a call of a replaceable function ran.

    Attributes:
        function: Name of the function, such as `'XCiTBlock.attend'`.
        layer: Name in the model of the layer that it serves; of the dropout of the weights for
            `'attention'`; empty for functions of tensors alone.
        path: Name of the kernel, or `'reference'`.
        reason: Why no kernel ran; empty if one did.
    """

    function: str
    layer: str
    path: str
    reason: str


def explain(model: nn.Module, *inputs: Any) -> list[Path]:
    """Run a model once, as it is, and print which path each of its layers takes, and why.

    With gradients enabled these are the paths of training, under `torch.no_grad()` those of
    inference. The call of one function can contain those of others.

    Args:
        model: Any model that holds layers of this package.
        inputs: Arguments of its forward.

    Returns:
        One entry for each call, in their order.
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
            choice.function.__qualname__,
            '' if choice.module is None else names.get(choice.module, type(choice.module).__name__),
            'reference' if choice.kernel is None else choice.kernel.name,
            choice.reason,
        )
        for choice in record
    ]
    widths = [max(map(len, column)) for column in zip(*paths, strict=True)]
    for path in paths:
        print('  '.join(map(str.ljust, path, widths)).rstrip())
    return paths
