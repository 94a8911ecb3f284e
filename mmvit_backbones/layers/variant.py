"""The two structures of each network."""

from __future__ import annotations

PAPER, VIT_PYTORCH = VARIANTS = ('paper', 'vit-pytorch')


def check_variant(variant: str) -> str:
    """Return `variant` if it names a structure, else raise ValueError."""
    if variant not in VARIANTS:
        raise ValueError(f'variant must be one of {VARIANTS}, got {variant!r}')
    return variant
