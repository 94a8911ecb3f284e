"""Where kernels may take over from the layers.

The decorator `replaceable` marks the functions that a kernel can stand in for. The undecorated
function is the reference: it defines the result. Importing `mmvit_backbones` installs a dispatcher
here (`kernels.switch.use_environment`). It runs a kernel or the reference, call by call. Dispatcher
and kernels are in `mmvit_backbones/kernels`, whose README.md says how they work. Without a
dispatcher the reference runs.

Replaceable are the residual branches of the blocks, where a kernel sees norm, layer, scale and
residual at once, and a few functions that several layers call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Function = TypeVar('Function', bound=Callable[..., Any])
Dispatch = Callable[..., Any]

_dispatcher: Dispatch | None = None


def replaceable(reference: Function) -> Function:
    """Let the dispatcher choose what a call of a function runs: a kernel or the reference.

    Args:
        reference: Function or method.

    Returns:
        The replaceable function. It hands itself and its arguments to the dispatcher. It takes
        positional arguments only: a keyword raises TypeError. Its attribute `__wrapped__` is the
        reference.
    """

    @functools.wraps(reference)
    def run(*args: Any) -> Any:
        if _dispatcher is None:
            return reference(*args)
        return _dispatcher(run, *args)

    return run  # type: ignore[return-value]


def get_dispatcher() -> Dispatch | None:
    """Return the dispatcher of this process, None where the reference runs everywhere."""
    return _dispatcher


def set_dispatcher(dispatcher: Dispatch | None) -> None:
    """Install a dispatcher for this process; None makes the reference run everywhere."""
    global _dispatcher
    _dispatcher = dispatcher


@contextmanager
def use_dispatcher(dispatcher: Dispatch | None) -> Iterator[None]:
    """Install a dispatcher for the time of a context."""
    before = get_dispatcher()
    set_dispatcher(dispatcher)
    try:
        yield
    finally:
        set_dispatcher(before)
