"""Synthetic data to try a detector, a segmentor or a classifier on; needs only numpy and Pillow."""

from .shapes import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    SHAPE_CLASSES,
    STUFF_CLASSES,
    Instance,
    Scene,
    draw_portrait,
    draw_scene,
)
from .shapes_writer import FORMATS, write_shapes

__all__ = [
    'FORMATS',
    'SEGMENTATION_CLASSES',
    'SEGMENTATION_PALETTE',
    'SHAPE_CLASSES',
    'STUFF_CLASSES',
    'Instance',
    'Scene',
    'draw_portrait',
    'draw_scene',
    'write_shapes',
]
