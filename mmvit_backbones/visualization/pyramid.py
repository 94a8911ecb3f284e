"""Feature maps as colours: similar features have similar colours."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.visualization.capture import evaluating
from mmvit_backbones.visualization.drawing import make_figure, show_image
from mmvit_backbones.visualization.sample import Sample

RANGE = (0.01, 0.99)  # quantiles that become the darkest and the brightest: a few outliers do not


def pca_colours(feature_map: Tensor) -> tuple[Tensor, float]:
    """Turn a feature map into an image by its first three principal components.

    Args:
        feature_map: (C, H, W).

    Returns:
        Red, green and blue in [0, 1] (H, W, 3), and the share of the variance that they show.
    """
    channels, height, width = feature_map.shape
    tokens = feature_map.detach().flatten(1).T.double()  # (HW, C)
    tokens = tokens - tokens.mean(dim=0)
    variances, axes = torch.linalg.eigh(tokens.T @ tokens)  # in ascending order
    count = min(3, channels)
    axes = axes[:, -count:].flip(1)
    strongest = axes.abs().argmax(dim=0, keepdim=True)
    axes = axes * axes.gather(0, strongest).sign()  # the sign of a component is arbitrary: fix it
    colours = tokens @ axes
    low, high = (colours.quantile(q, dim=0) for q in RANGE)
    colours = ((colours - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colours = torch.nn.functional.pad(colours, (0, 3 - count))
    share = float(variances[-count:].sum() / variances.sum().clamp_min(1e-12))
    return colours.reshape(height, width, 3), share


def draw_pyramid(backbone: Backbone, sample: Sample) -> Figure:
    """Draw the feature maps of a backbone beside the image, each by its own PCA.

    Args:
        backbone: The backbone; of a whole model, its `backbone`.
        sample: The image.
    """
    with evaluating(backbone), torch.no_grad():
        maps = backbone(sample.input)
    height, width = sample.size
    figure, axes = make_figure(
        1,
        len(maps) + 1,
        f'Feature maps of {type(backbone).__name__}: {sample.name}',
        'Colours are the first three principal components of each map: '
        'what has one colour has similar features.',
        aspect=height / width + 0.05,  # titles of two lines
    )
    show_image(axes[0, 0], sample.pixels, f'image, {height} x {width} px')
    for axis, feature_map, stride in zip(axes[0, 1:], maps, backbone.out_strides, strict=True):
        colours, share = pca_colours(feature_map[0])
        channels, rows, columns = feature_map.shape[1:]
        axis.imshow(
            np.asarray(colours),
            extent=(0, columns * stride, rows * stride, 0),
            interpolation='nearest',
        )
        axis.set(xlim=(0, width), ylim=(height, 0))
        axis.set_title(
            f'stride {stride}: {rows} x {columns}, {channels} channels\n'
            f'colours show {share:.0%} of the variance',
            fontsize=9,
        )
    return figure
