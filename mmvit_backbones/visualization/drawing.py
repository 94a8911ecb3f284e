"""What all pictures have in common: figures, images with a heat map over them, colour bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

HEAT = 'inferno'  # values from 0: equal steps look equal, also in grey and to the colour-blind
SIGNED = 'RdBu_r'  # values around 0
PANEL = 2.7  # inches
MIN_WIDTH = 8.0  # inches, for the title and the note
MARK = '#00e5ff'  # a colour that neither map has


def make_figure(
    rows: int,
    columns: int,
    title: str,
    note: str = '',
    aspect: float | Sequence[float] = 1.0,
) -> tuple[Figure, np.ndarray]:
    """Make a grid of panels.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        title: What one sees, above.
        note: How to read it, below.
        aspect: Height over width of the images in the panels, or of each row.

    Returns:
        The figure and its axes (rows, columns), without ticks.
    """
    aspects = [aspect] * rows if isinstance(aspect, (int, float)) else list(aspect)
    heights = [PANEL * aspect + 0.3 for aspect in aspects]
    height = sum(heights) + (0.75 if note else 0.45)
    figure = Figure(
        figsize=(max(columns * PANEL + 0.9, MIN_WIDTH), height), layout='constrained', dpi=120
    )
    figure.suptitle(title, fontsize=13, fontweight='bold')
    if note:
        figure.supxlabel(note, fontsize=9, color='0.25')
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        without_ticks(axis)
    return figure, axes


def without_ticks(axis: Axes) -> None:
    """Remove the ticks of an axis, and keep its frame and labels."""
    axis.set(xticks=[], yticks=[])


def show_image(axis: Axes, pixels: np.ndarray, title: str = '') -> None:
    """Show an image (H, W, 3) in pixel coordinates: the corner of the first pixel is (0, 0)."""
    height, width = pixels.shape[:2]
    axis.imshow(pixels, extent=(0, width, height, 0), interpolation='nearest')
    axis.set_title(title, fontsize=9)


def show_heat(
    axis: Axes,
    pixels: np.ndarray,
    heat: np.ndarray,
    title: str = '',
    norm: Normalize | None = None,
    cmap: str = HEAT,
    stride: float | None = None,
    alpha: float = 0.75,
) -> ScalarMappable:
    """Show values of tokens over a dark grey copy of the image.

    Args:
        axis: Where.
        pixels: RGB image (H, W, 3).
        heat: Values (h, w) of tokens; NaN leaves the image visible.
        title: Above the panel.
        norm: From values to [0, 1]; their range by default.
        cmap: Colours.
        stride: Pixels per token, from which the tokens may reach over the border; by default they
            cover the image exactly.
        alpha: Opacity of the values.
    """
    height, width = pixels.shape[:2]
    grey = pixels.mean(axis=2) / 255
    axis.imshow(grey, cmap='gray', vmin=0, vmax=1.2, extent=(0, width, height, 0))
    right, bottom = width, height
    if stride is not None:
        right, bottom = heat.shape[1] * stride, heat.shape[0] * stride
    shown = axis.imshow(
        heat,
        cmap=cmap,
        norm=norm or Normalize(float(np.nanmin(heat)), float(np.nanmax(heat))),
        extent=(0, right, bottom, 0),
        alpha=alpha,
        interpolation='nearest',
    )
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_title(title, fontsize=9)
    return shown


def mark_pixel(axis: Axes, pixel: tuple[float, float]) -> None:
    """Mark a pixel (x, y) by a ring that is seen on any colour."""
    for size, colour, width in ((5, 'black', 2.5), (5, MARK, 1.2)):
        axis.plot(
            *pixel, 'o', markersize=size, markerfacecolor='none', color=colour, mew=width,
            clip_on=False,
        )  # fmt: skip


def add_colour_bar(
    figure: Figure, shown: ScalarMappable, axes: Axes | Sequence[Axes] | np.ndarray, label: str
) -> Any:
    """Put a colour bar beside some panels; returns it."""
    bar = figure.colorbar(shown, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return bar
