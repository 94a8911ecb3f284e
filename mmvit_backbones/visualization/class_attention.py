"""Where XCiT's class token looks."""

from __future__ import annotations

from math import ceil
from typing import cast

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import nn

from mmvit_backbones.backbones import XCiT
from mmvit_backbones.layers.class_attention import ClassAttentionBlock
from mmvit_backbones.layers.tokens import ceil_div
from mmvit_backbones.necks import ClassAttentionPooling
from mmvit_backbones.visualization.capture import check_index, run_and_hear, the_only
from mmvit_backbones.visualization.drawing import (
    add_colour_bar,
    make_figure,
    show_heat,
    show_image,
)
from mmvit_backbones.visualization.sample import Sample

COLUMNS = 5


def draw_class_attention(model: nn.Module, sample: Sample, layer: int = -1) -> Figure:
    """Draw the attention of the class token to the patches, by head.

    Args:
        model: A classifier on XCiT: `create_model('xcit_...', num_classes=...)` or mmpretrain's.
        sample: The image.
        layer: Class-attention layer, from 0; negative counts from the last.

    Raises:
        ValueError: If the model holds no XCiT with class attention, or no such layer.
    """
    pooling = the_only(model, ClassAttentionPooling)
    backbone = the_only(model, XCiT)
    count = len(pooling.cls_attn_blocks)
    layer = check_index('layer', layer, count)
    dropout = cast(ClassAttentionBlock, pooling.cls_attn_blocks[layer]).attn.attn_drop
    weights = run_and_hear(nn.Sequential(backbone, pooling), [dropout], sample.input)[dropout]
    height, width = sample.size
    patch = backbone.patch_size
    itself, patches = weights[0, :, 0, :1], weights[0, :, 0, 1:]  # (h, 1), (h, N)
    even = patches.shape[1] + 1
    grids = (patches * even).unflatten(1, (ceil_div(height, patch), ceil_div(width, patch)))
    grids = grids.numpy()
    rows = ceil((len(grids) + 2) / COLUMNS)
    columns = ceil((len(grids) + 2) / rows)
    figure, axes = make_figure(
        rows,
        columns,
        f'Attention of the class token, layer {layer + 1} of {count}: {sample.name}',
        f'1 is an even share of all {even} tokens. The token gives itself '
        f'{float(itself.mean()):.1%} on average.',
        aspect=height / width,
    )
    mean = grids.mean(axis=0)
    norm = Normalize(0, float(np.quantile(grids, 0.995)))
    show_image(axes.flat[0], sample.pixels, 'image')
    shown = show_heat(
        axes.flat[1], sample.pixels, mean, 'mean of all heads', norm, stride=patch, alpha=0.6
    )
    for head, (axis, grid) in enumerate(zip(axes.flat[2:], grids, strict=False)):
        show_heat(axis, sample.pixels, grid, f'head {head}', norm, stride=patch, alpha=0.6)
    for axis in axes.flat[len(grids) + 2 :]:
        axis.set_axis_off()
    add_colour_bar(figure, shown, axes, 'attention, in even shares')
    return figure
