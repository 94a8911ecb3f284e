"""Initial factors of residual branches."""

from __future__ import annotations


def initial_layer_scale(value: float | None, layer: int) -> float:
    """Return what LayerScale starts from in a layer (CaiT, arXiv 2103.17239).

    Args:
        value: The factor for all layers; None for the rule by layer that the package vit-pytorch
            means: 0.1 up to layer 18, 1e-5 up to 24, 1e-6 beyond.
        layer: 1-based index of the layer.
    """
    if value is not None:
        return value
    if layer <= 18:
        return 0.1
    return 1e-5 if layer <= 24 else 1e-6
