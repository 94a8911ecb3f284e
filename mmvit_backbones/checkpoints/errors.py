"""The error of everything that reads, renames or loads weights."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 3  # examples in a message


class CheckpointError(ValueError):
    """A file that is not weights, or weights that don't fit."""


def some_of(names: Iterable[str]) -> str:
    """Count and examples, for a message: `"5 (a, b, c, ...)"`."""
    names = list(names)
    if not names:
        return '0'
    more = ', ...' if len(names) > SHOWN else ''
    return f'{len(names)} ({", ".join(names[:SHOWN])}{more})'
