"""How far a feature map sees: effective receptive fields (Luo et al., arXiv 1701.04128)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from mmvit_backbones import kernels
from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.visualization.capture import evaluating
from mmvit_backbones.visualization.drawing import MARK, add_colour_bar, make_figure
from mmvit_backbones.visualization.sample import Sample

DECADES = 3  # of the colour scale below the maximum


def receptive_field(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Measure how much each pixel moves the central token of each feature map.

    Args:
        backbone: The backbone.
        images: Normalized images (B, C, H, W). The more, the smoother.

    Returns:
        For each feature map the absolute gradient of the sum of the central token's positive
        channels, summed over the channels of the image and averaged over images (H, W).
    """
    fields = []
    with evaluating(backbone), kernels.use('reference'):
        for level in range(len(backbone.out_strides)):
            field = torch.zeros(images.shape[2:])
            for image in images:  # one at a time: a graph of all would not fit
                x = image[None].detach().requires_grad_()
                feature_map = backbone(x)[level]
                row, column = (side // 2 for side in feature_map.shape[2:])
                target = feature_map[..., row, column].relu().sum()
                (gradient,) = torch.autograd.grad(target, x)
                field += gradient[0].abs().sum(dim=0)
            fields.append(field / len(images))
    return fields


def radius_of(field: Tensor, share: float, centre: tuple[float, float]) -> float:
    """Return the radius in pixels around a centre (row, column) that holds a share of a field."""
    rows = torch.arange(field.shape[0]) + 0.5 - centre[0]
    columns = torch.arange(field.shape[1]) + 0.5 - centre[1]
    distances = (rows[:, None] ** 2 + columns**2).sqrt().flatten()
    order = distances.argsort()
    reached = field.flatten()[order].cumsum(0) / field.sum().clamp_min(1e-30)
    index = int(torch.searchsorted(reached, torch.tensor(share)).clamp(max=len(order) - 1))
    return float(distances[order[index]])


def draw_receptive_field(backbone: Backbone, samples: Sequence[Sample]) -> Figure:
    """Draw the effective receptive field of each feature map.

    Args:
        backbone: The backbone; of a whole model, its `backbone`.
        samples: Images of one size.

    Raises:
        ValueError: If there is no image, or their sizes differ.
    """
    sizes = {sample.size for sample in samples}
    if len(sizes) != 1:
        raise ValueError(f'samples must be images of one size, got sizes {sorted(sizes)}')
    height, width = sizes.pop()
    fields = receptive_field(backbone, torch.cat([sample.input for sample in samples]))
    many = f'mean of {len(samples)} images' if len(samples) > 1 else samples[0].name
    figure, axes = make_figure(
        1,
        len(fields),
        f'Effective receptive field of {type(backbone).__name__}: {many}',
        'How much each pixel moves the central token of a map. '
        'Circle: half of all influence lies inside.',
        aspect=height / width,
    )
    for axis, field, stride in zip(axes[0], fields, backbone.out_strides, strict=True):
        rows, columns = (-(-side // stride) for side in (height, width))
        centre = ((rows // 2 + 0.5) * stride, (columns // 2 + 0.5) * stride)
        half = radius_of(field, 0.5, centre)
        relative = field / field.amax().clamp_min(1e-30)
        shown = axis.imshow(
            relative.clamp_min(10.0**-DECADES),
            cmap='inferno',
            norm=LogNorm(10.0**-DECADES, 1),
            extent=(0, width, height, 0),
        )
        axis.add_patch(Circle(centre[::-1], half, fill=False, color=MARK, linewidth=1.5))
        axis.set_title(f'stride {stride}: half within {half:.0f} px', fontsize=9)
    add_colour_bar(figure, shown, axes, 'influence / its maximum')
    return figure
