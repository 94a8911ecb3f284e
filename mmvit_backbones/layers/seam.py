"""Where kernels may take over from the layers.

A function marked `replaceable` is the reference for what it computes. The package
`mmvit_backbones.kernels` installs a dispatcher here that may compute the same result in another
way. Without a dispatcher, or where it finds no kernel, the reference runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Function = TypeVar('Function', bound=Callable[..., Any])
Dispatcher = Callable[..., Any]

_dispatcher: Dispatcher | None = None


def replaceable(reference: Function) -> Function:
    """Let the dispatcher choose what a call of a function runs: a kernel or the function.

    Args:
        reference: Function or method.

    Returns:
        The replaceable function. The dispatcher is called with it and its arguments; it finds the
        reference as `__wrapped__`.
    """

    @functools.wraps(reference)
    def run(*args: Any) -> Any:
        if _dispatcher is None:
            return reference(*args)
        return _dispatcher(run, *args)

    return run  # type: ignore[return-value]


def get_dispatcher() -> Dispatcher | None:
    """Return the dispatcher of this process, None where the reference runs everywhere."""
    return _dispatcher


def set_dispatcher(dispatcher: Dispatcher | None) -> None:
    """Install a dispatcher for this process; None makes the reference run everywhere."""
    global _dispatcher
    _dispatcher = dispatcher


@contextmanager
def use_dispatcher(dispatcher: Dispatcher | None) -> Iterator[None]:
    """Install a dispatcher for the time of a context."""
    before = get_dispatcher()
    set_dispatcher(dispatcher)
    try:
        yield
    finally:
        set_dispatcher(before)
