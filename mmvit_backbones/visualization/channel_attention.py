"""Which channels XCiT mixes, and what those channels respond to.

Legend: N tokens, h heads, d channels per head.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from einops import rearrange
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmvit_backbones.backbones.xcit import XCiT, XCiTBlock
from mmvit_backbones.layers.tokens import Size, ceil_div
from mmvit_backbones.visualization.capture import check_index, run_and_hear, the_only
from mmvit_backbones.visualization.drawing import (
    HEAT,
    SIGNED,
    add_colour_bar,
    make_figure,
    show_heat,
    show_image,
)
from mmvit_backbones.visualization.sample import Sample

KEYS = 3  # strongest keys of a channel that are drawn


def draw_channel_attention(
    model: nn.Module,
    sample: Sample,
    block: int = -1,
    head: int | None = None,
    channel: int | None = None,
) -> Figure:
    """Draw which channels attend to which, and the maps of one channel.

    Args:
        model: An XCiT or a model that holds one.
        sample: The image.
        block: Block, from 0; negative counts from the last.
        head: Head of the channel below, from 0; by default that of the strongest attention.
        channel: Query channel of the head, from 0; by default that of the strongest attention.

    Raises:
        ValueError: If the model holds no XCiT, or an index is out of range.
    """
    backbone = the_only(model, XCiT)
    block = check_index('block', block, len(backbone.blocks))
    attn = cast(XCiTBlock, backbone.blocks[block]).attn
    heard = run_and_hear(backbone, [attn.qkv, attn.attn_drop], sample.input)
    weights = heard[attn.attn_drop][0]  # (h, d, d)
    head, channel = _strongest(weights, head, channel)
    q, k, v = rearrange(
        heard[attn.qkv][0], 'n (three h d) -> three h d n', three=3, h=len(weights)
    )  # (h, d, N)

    height, width = sample.size
    columns = max(len(weights) // (2 if len(weights) > 4 else 1), KEYS + 2)
    matrix_rows = -(-len(weights) // columns)
    figure, axes = make_figure(
        matrix_rows + 1,
        columns,
        f'Attention between channels, block {block + 1} of {len(backbone.blocks)}: {sample.name}',
        'Above: row = query channel, column = key channel; each row sums to 1. '
        'Below: one query channel, its strongest keys, and what comes out.',
        aspect=[1.0] * matrix_rows + [height / width],
    )
    _draw_matrices(figure, axes[:matrix_rows], weights, head, channel)
    size = (ceil_div(height, backbone.patch_size), ceil_div(width, backbone.patch_size))
    maps = _chosen_maps(weights[head], q[head], k[head], v[head], channel)
    _draw_maps(figure, axes[matrix_rows], sample, maps, size, backbone.patch_size)
    return figure


def _strongest(weights: Tensor, head: int | None, channel: int | None) -> tuple[int, int]:
    """Fill in the head and the channel whose largest weight is largest."""
    num_heads, head_dims, _ = weights.shape
    if head is not None:
        head = check_index('head', head, num_heads)
    if channel is not None:
        channel = check_index('channel', channel, head_dims)
    peaks = weights.amax(dim=2)  # (h, d)
    if head is None:
        head = int((peaks.amax(dim=1) if channel is None else peaks[:, channel]).argmax())
    if channel is None:
        channel = int(peaks[head].argmax())
    return head, channel


def _draw_matrices(
    figure: Figure, axes: np.ndarray, weights: Tensor, head: int, channel: int
) -> None:
    head_dims = weights.shape[1]
    norm = Normalize(0, float(weights.amax()))
    for index, axis in enumerate(axes.flat):
        if index >= len(weights):
            axis.set_axis_off()
            continue
        shown = axis.imshow(weights[index].numpy(), cmap=HEAT, norm=norm, interpolation='nearest')
        axis.set_title(f'head {index}: {head_dims} x {head_dims} channels', fontsize=9)
        if index == head:
            axis.annotate(
                f'{channel}',
                (-0.5, channel),
                xytext=(-14, 0),
                textcoords='offset points',
                fontsize=9,
                ha='right',
                va='center',
                arrowprops=dict(arrowstyle='-|>', color='black'),
            )
    add_colour_bar(figure, shown, axes, 'attention weight')


def _chosen_maps(
    weights: Tensor, q: Tensor, k: Tensor, v: Tensor, channel: int
) -> list[tuple[str, Tensor]]:
    """Return titles and maps (N) of a query channel, its strongest keys and its output."""
    row = weights[channel]
    best = row.topk(min(KEYS, len(row)))
    keys = [
        (f'key {index}: weight {value:.2f}', k[index])
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return [(f'query {channel}', q[channel]), *keys, ('output: weighted values', row @ v)]


def _draw_maps(
    figure: Figure,
    axes: np.ndarray,
    sample: Sample,
    maps: list[tuple[str, Tensor]],
    size: Size,
    stride: int,
) -> None:
    """Draw maps, each divided by its largest magnitude."""
    offset = 1 if len(axes) > len(maps) else 0
    if offset:
        show_image(axes[0], sample.pixels, 'image')
    norm = TwoSlopeNorm(0, -1, 1)
    for axis, (title, values) in zip(axes[offset:], maps, strict=False):
        grid = (values / values.abs().amax().clamp_min(1e-12)).unflatten(0, size).numpy()
        shown = show_heat(
            axis, sample.pixels, grid, title, norm, cmap=SIGNED, stride=stride, alpha=0.85
        )
    for axis in axes[len(maps) + offset :]:
        axis.set_axis_off()
    add_colour_bar(figure, shown, axes, 'response / its maximum')
