"""What one place of an image attends to in Twins-SVT: its window, then the whole image.

Legend: h heads, H x W = N tokens, M subsampled tokens, n tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mmvit_backbones.backbones import TwinsSVT
from mmvit_backbones.layers.subsampled_attention import SubsampledAttention
from mmvit_backbones.layers.tokens import Size, ceil_div
from mmvit_backbones.layers.window_attention import WindowAttention
from mmvit_backbones.visualization.capture import run_and_hear, the_only
from mmvit_backbones.visualization.drawing import (
    MARK,
    SIGNED,
    add_colour_bar,
    make_figure,
    mark_pixel,
    show_heat,
)
from mmvit_backbones.visualization.sample import Sample

LARGEST_FACTOR = 8  # of an even share: the ends of the colour scale
KINDS: tuple[type[nn.Module], ...] = (WindowAttention, SubsampledAttention)


class Attended(NamedTuple):
    """What a token attends to.

    Attributes:
        shares: Mean attention of all heads to each key, times the number of keys (rows, columns).
        left: First pixel column of the keys.
        top: First pixel row of the keys.
        stride: Pixels per key.
    """

    shares: Tensor
    left: int
    top: int
    stride: int


def draw_token_attention(
    model: nn.Module, sample: Sample, pixel: tuple[int, int] | None = None
) -> Figure:
    """Draw the attention of the token at a pixel in the last blocks of each stage.

    Args:
        model: A TwinsSVT or a model that holds one.
        sample: The image.
        pixel: Column and row in pixels, (x, y); the centre by default.

    Raises:
        ValueError: If the model holds no TwinsSVT, or the pixel lies outside of the image.
    """
    backbone = the_only(model, TwinsSVT)
    height, width = sample.size
    x, y = pixel or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f'pixel must lie in the image of {width} x {height} px, got ({x}, {y})')
    layers = {
        (stage, kind): _last(blocks, kind)
        for stage, blocks in enumerate(cast(Iterable[Any], backbone.blocks))
        for kind in KINDS
    }
    dropouts = [layer.attn_drop for layer in layers.values() if layer is not None]
    heard = run_and_hear(backbone, dropouts, sample.input)

    figure, axes = make_figure(
        2,
        len(backbone.blocks),
        f'Attention of one place in {type(backbone).__name__}: {sample.name}',
        'Ring: the place. Red is more, blue less than an even share of all keys (1). '
        'Frame: the window; the rest of the image takes no part there.',
        aspect=height / width,
    )
    stride, found = 1, {}
    for stage, patch_size in enumerate(backbone.arch.patch_sizes[: len(backbone.blocks)]):
        stride *= patch_size
        grid = (ceil_div(height, stride), ceil_div(width, stride))
        token = (y // stride, x // stride)
        for kind in KINDS:
            if (layer := layers[stage, kind]) is not None:
                found[stage, kind] = _attended(layer, heard[layer.attn_drop], grid, token, stride)
    norm = LogNorm(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    shown = None
    for (stage, kind), axis in zip(layers, axes.T.flat, strict=True):
        if (stage, kind) not in found:
            axis.set_axis_off()
            continue
        attended = found[stage, kind]
        is_window = kind is WindowAttention
        title = f'stage {stage + 1}, {"window" if is_window else "global"}'
        keys = f'{attended.shares.shape[0]} x {attended.shares.shape[1]} keys'
        canvas = _on_image(attended, sample.size)
        shown = show_heat(axis, sample.pixels, canvas, f'{title}: {keys}', norm, cmap=SIGNED)
        if is_window:
            rows, columns = (side * attended.stride for side in attended.shares.shape)
            axis.add_patch(
                Rectangle(
                    (attended.left, attended.top),
                    min(columns, width - attended.left),
                    min(rows, height - attended.top),
                    fill=False,
                    color=MARK,
                    linewidth=1.5,
                )
            )
        mark_pixel(axis, (x, y))
    assert shown is not None
    bar = add_colour_bar(figure, shown, axes, 'attention, in even shares')
    bar.set_ticks(
        [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=['1/8', '1/4', '1/2', '1', '2', '4', '8']
    )
    bar.minorticks_off()
    return figure


def _last(blocks: Iterable[Any], kind: type[nn.Module]) -> Any:
    """Return the last attention layer of a kind in the blocks of a stage; None if it has none."""
    layers = [block.attn for block in blocks if isinstance(block.attn, kind)]
    return layers[-1] if layers else None


def _attended(
    layer: nn.Module, weights: Tensor, grid: Size, token: tuple[int, int], stride: int
) -> Attended:
    """Cut what one token attends to out of the weights of a layer.

    Args:
        layer: Attention of a block.
        weights: (windows, h, n, n) of a window attention, (1, h, N, M) of a global one.
        grid: Rows and columns of tokens.
        token: Row and column of the token.
        stride: Pixels per token.
    """
    row, column = token
    if isinstance(layer, WindowAttention):
        side = layer.window_size
        window = row // side * ceil_div(grid[1], side) + column // side
        place = row % side * side + column % side
        shares = weights[window, :, place].mean(dim=0).view(side, side)
        top, left = row // side * side, column // side * side
        shares = shares[: grid[0] - top, : grid[1] - left]
        return Attended(shares * shares.numel(), left * stride, top * stride, stride)
    assert isinstance(layer, SubsampledAttention)
    keys = tuple(ceil_div(side, layer.sr_ratio) for side in grid)
    shares = weights[0, :, row * grid[1] + column].mean(dim=0).view(keys)
    return Attended(shares * shares.numel(), 0, 0, stride * layer.sr_ratio)


def _on_image(attended: Attended, size: Size) -> np.ndarray:
    """Spread the shares over pixels (H, W); NaN where there is no key."""
    shares, left, top, stride = attended
    pixels = shares.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    canvas = torch.full(size, torch.nan)
    pixels = pixels[: size[0] - top, : size[1] - left]
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas.numpy()
