"""Draw the site's diagrams: python docs/figures/draw.py."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = '#cfe3f5', '#fbe0c8', '#d5ecd4', '#ececec'
INK = '#222222'


def box(
    axis: Axes, x: float, y: float, text: str, colour: str, size: tuple[float, float] = (2.1, 0.9)
) -> None:
    """Draw a box with text, centred at (x, y)."""
    width, height = size
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle='round,pad=0.02,rounding_size=0.08',
            facecolor=colour,
            edgecolor=INK,
            linewidth=1,
        )
    )
    axis.text(x, y, text, ha='center', va='center', fontsize=10.5, color=INK)


def arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = '',
    dashed: bool = False,
) -> None:
    """Draw an arrow with a text above its middle."""
    style = dict(
        arrowstyle='-|>',
        color=INK,
        linewidth=1.1,
        linestyle='--' if dashed else '-',
        shrinkA=0,
        shrinkB=0,
    )
    axis.annotate('', end, start, arrowprops=style)
    if text:
        axis.text(
            (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.09, text,
            ha='center', va='bottom', fontsize=10, color=INK,
        )  # fmt: skip


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a white page of width x height units without axes."""
    figure = Figure(figsize=(width, height), layout='constrained')
    axis = figure.subplots()
    axis.set(xlim=(0, width), ylim=(0, height), aspect='equal')
    axis.set_axis_off()
    return figure, axis


def draw_architecture() -> Figure:
    """The way of an image, and the seam between layers and kernels."""
    figure, axis = blank(13, 4.4)
    steps = [
        (1.1, 'image\n(B, 3, H, W)', GREY),
        (3.7, 'stem\npatches, position', BLUE),
        (6.3, 'blocks\ntokens (B, N, C)', BLUE),
        (8.9, 'pyramid\n4 maps, strides 4 to 32', BLUE),
        (11.7, 'toolkit\nneck, head, loss', GREY),
    ]
    for (x, text, colour), following in zip(steps, [*steps[1:], None], strict=True):
        box(axis, x, 3.6, text, colour, (2.0, 0.9))
        if following:
            arrow(axis, (x + 1.05, 3.6), (following[0] - 1.05, 3.6))
    axis.text(6.3, 4.25, 'backbones/: one paper, one file', ha='center', fontsize=10.5, color=INK)
    box(axis, 6.3, 2.1, 'x + drop_path(scale * f(norm(x)))\na residual branch, marked @replaceable',
        GREEN, (4.4, 0.9))  # fmt: skip
    arrow(axis, (6.3, 3.15), (6.3, 2.55))
    box(axis, 2.9, 0.6, 'layers/\nthe paper, plain PyTorch: the reference', BLUE, (4.4, 0.9))
    box(axis, 9.7, 0.6, 'kernels/\nthe same sums, faster', ORANGE, (4.4, 0.9))
    arrow(axis, (5.3, 1.65), (3.6, 1.06))
    axis.text(3.4, 1.4, 'hooked, adapted, refused', ha='center', fontsize=10, color=INK)
    arrow(axis, (7.3, 1.65), (9.0, 1.06))
    axis.text(9.6, 1.4, 'the dispatch table has one', ha='center', fontsize=10, color=INK)
    axis.text(
        6.3, 0.6, 'one seam', ha='center', va='center', fontsize=10.5, color=INK, style='italic'
    )
    return figure


def draw_twins() -> Figure:
    """Windows and subsampled keys on one grid of tokens."""
    figure = Figure(figsize=(9, 3.9), layout='constrained')
    figure.suptitle('Twins-SVT: what one token (dark) attends to', fontsize=12)
    local, coarse = figure.subplots(1, 2)
    side, window, ratio, token = 14, 7, 2, (4, 9)
    for axis, title in (
        (local, 'LSA: the 49 tokens of its window'),
        (coarse, f'GSA: one key for {ratio} x {ratio} tokens, everywhere'),
    ):
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(0, side), ylim=(side, 0), aspect='equal', xticks=[], yticks=[])
        for i in range(side + 1):
            axis.axhline(i, color='0.85', lw=0.6)
            axis.axvline(i, color='0.85', lw=0.6)
    row, column = token
    top, left = row // window * window, column // window * window
    local.add_patch(Rectangle((left, top), window, window, color=ORANGE))
    for i in range(0, side + 1, window):
        local.axhline(i, color=INK, lw=1.5)
        local.axvline(i, color=INK, lw=1.5)
    for y in range(0, side, ratio):
        for x in range(0, side, ratio):
            coarse.add_patch(Rectangle((x + 0.1, y + 0.1), ratio - 0.2, ratio - 0.2, color=BLUE))
    for axis in (local, coarse):
        axis.add_patch(Rectangle((column, row), 1, 1, color='#1f4e79'))
    return figure


def draw_xcit() -> Figure:
    """Attention between tokens beside attention between channels."""
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    figure.suptitle('The size of the attention matrix, for N tokens of d channels', fontsize=12)
    tokens, channels = figure.subplots(1, 2)
    sizes = np.linspace(224, 1344, 200)
    counts = (sizes / 16) ** 2
    tokens.plot(sizes, counts**2 / 1e6, color='#d55e00', label='between tokens: N x N')
    tokens.plot(sizes, np.full_like(sizes, 48**2 / 1e6), color='#0072b2',
                label='between channels: d x d, d = 48')  # fmt: skip
    tokens.set(xlabel='side of the image in px, patches of 16 px', yscale='log',
               ylabel='entries a head, in millions')  # fmt: skip
    tokens.legend(fontsize=8)
    tokens.grid(alpha=0.3)
    channels.set_axis_off()
    channels.set(xlim=(0, 10), ylim=(0, 5))
    channels.add_patch(Rectangle((0.2, 2.1), 3.2, 0.9, facecolor=BLUE, edgecolor=INK))
    channels.text(1.8, 2.55, 'q: d x N', ha='center', va='center', fontsize=9)
    channels.add_patch(Rectangle((4.2, 0.9), 0.9, 3.2, facecolor=BLUE, edgecolor=INK))
    channels.text(4.65, 2.5, 'k: N x d', ha='center', va='center', fontsize=9, rotation=90)
    channels.text(3.8, 2.55, 'x', ha='center', va='center', fontsize=11)
    channels.text(5.65, 2.55, '=', ha='center', va='center', fontsize=13)
    x, y, width, height = 6.4, 2.1, 0.9, 0.9
    channels.add_patch(Rectangle((x, y), width, height, facecolor=ORANGE, edgecolor=INK))
    channels.text(x + 0.45, y + 0.45, 'd x d', ha='center', va='center', fontsize=9)
    channels.text(x + 0.45, 1.55, 'softmax of cosines\nbetween channels', ha='center', va='center',
                  fontsize=8)  # fmt: skip
    return figure


def draw_speed() -> Figure:
    """The table of docs/numbers.md as bars."""
    text = (HERE.parent / 'numbers.md').read_text(encoding='utf-8')
    row = r'^\| (\S+) \| (\d of \d+ x \d+) \| ([\d.]+)x \| ([\d.]+)x \|'
    rows = re.findall(row, text, re.M)
    figure = Figure(figsize=(8, 3.2), layout='constrained')
    figure.suptitle(
        'Speed over the fastest of timm and mmpretrain (two CPU cores, fp32)', fontsize=11
    )
    axis = figure.subplots()
    places = np.arange(len(rows))
    for shift, column, colour, label in (
        (-0.19, 2, '#0072b2', 'forward'),
        (0.19, 3, '#e69f00', 'training step'),
    ):
        values = [float(row[column]) for row in rows]
        bars = axis.bar(places + shift, values, 0.36, color=colour, label=label)
        axis.bar_label(bars, [f'{value:.2f}' for value in values], fontsize=8)
    axis.axhline(1, color=INK, linewidth=1)
    axis.set(xticks=places, ylabel='times as fast', ylim=(0, 2.2))
    axis.set_xticklabels([f'{row[0]}\n{row[1]}' for row in rows], fontsize=8)
    axis.legend(fontsize=8, loc='upper left', ncols=2)
    return figure


if __name__ == '__main__':
    matplotlib.rcParams['svg.hashsalt'] = 'mmvit_backbones'  # the same file each time
    for name, draw in (
        ('architecture', draw_architecture),
        ('twins', draw_twins),
        ('xcit', draw_xcit),
        ('speed', draw_speed),
    ):
        figure = draw()
        figure.savefig(HERE / f'{name}.svg', metadata={'Date': None}, facecolor='white')
        print(HERE / f'{name}.svg')
