"""Grad-CAM: which places speak for a class or a detection, through the package grad-cam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mmvit_backbones import kernels
from mmvit_backbones.backbones import TwinsSVT
from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.layers.tokens import ceil_div
from mmvit_backbones.visualization.capture import check_index, evaluating, our_backbone
from mmvit_backbones.visualization.drawing import (
    MARK,
    add_colour_bar,
    make_figure,
    show_heat,
    show_image,
)
from mmvit_backbones.visualization.sample import Sample

NUM_SHOWN = 3  # classes or detections, where none are named


def class_name(index: int, names: Sequence[str] | None) -> str:
    """Name a class, by its number if there are no names."""
    return names[index] if names else f'class {index}'


def draw_grad_cam(
    model: nn.Module,
    sample: Sample,
    classes: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw where the evidence of a classifier or a detector lies.

    For a classifier: the last feature map, for each class. For a detector of mmdet: all feature
    maps of the backbone, for each of its best detections, by HiResCAM (arXiv 2011.08891). Grad-CAM
    weighs a channel alike everywhere, and so lights up what has no part in a detection.

    Args:
        model: `Classifier`, mmpretrain's `ImageClassifier`, or a detector of mmdet.
        sample: The image.
        classes: Classes to explain; the three best ones by default. A detector explains its best
            detection of each.
        names: Names of the classes.

    Raises:
        ImportError: If the package grad-cam is not installed.
        ValueError: If a class does not exist or is not found in the image.
    """
    backbone = our_backbone(model)
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        return _draw_detections(model, backbone, sample, classes, names)
    return _draw_classes(model, backbone, sample, classes, names)


def _draw_classes(
    model: nn.Module,
    backbone: Backbone,
    sample: Sample,
    classes: Sequence[int] | None,
    names: Sequence[str] | None,
) -> Figure:
    with evaluating(model), torch.no_grad():
        chances = _logits(model, sample.input)[0].softmax(dim=0)
    if classes is None:
        classes = chances.topk(min(NUM_SHOWN, len(chances))).indices.tolist()
    classes = [check_index('classes', index, len(chances)) for index in classes]
    layers = _token_layers(backbone)[-1:]
    heats = _run(
        lambda x: _logits(model, x), model, backbone, layers, sample,
        [itemgetter(index) for index in classes], 'GradCAM',
    )  # fmt: skip
    height, width = sample.size
    figure, axes = make_figure(
        1, len(classes) + 1, f'Grad-CAM of the classifier: {sample.name}',
        'Bright places speak for the class; the last feature map.', height / width,
    )  # fmt: skip
    show_image(axes[0, 0], sample.pixels, 'image')
    for axis, index, heat in zip(axes[0, 1:], classes, heats, strict=True):
        title = f'{class_name(index, names)}: {float(chances[index]):.1%}'
        shown = show_heat(axis, sample.pixels, heat, title, Normalize(0, 1), alpha=0.6)
    add_colour_bar(figure, shown, axes, 'evidence / its maximum')
    return figure


def _draw_detections(
    model: Any,
    backbone: Backbone,
    sample: Sample,
    classes: Sequence[int] | None,
    names: Sequence[str] | None,
) -> Figure:
    with evaluating(model), torch.no_grad():
        found = _detect(model, sample.input)
    labels = found.labels.tolist()
    if classes is None:
        chosen = list(range(min(NUM_SHOWN, len(labels))))
    else:
        missing = [index for index in classes if index not in labels]
        if missing:
            raise ValueError(f'classes must be found in the image ({set(labels)}), got {missing}')
        chosen = [labels.index(index) for index in classes]
    if not chosen:
        raise ValueError(f'the detector finds nothing in {sample.name}, so there is no evidence')
    heats = _run(
        lambda x: _detect(model, x).scores[None], model, backbone, _token_layers(backbone), sample,
        [itemgetter(index) for index in chosen], 'HiResCAM',
    )  # fmt: skip
    height, width = sample.size
    figure, axes = make_figure(
        1, len(chosen) + 1, f'HiResCAM of the detector: {sample.name}',
        'Bright places speak for the detection in the frame; mean of all feature maps.',
        height / width,
    )  # fmt: skip
    show_image(axes[0, 0], sample.pixels, 'image')
    for axis, index, heat in zip(axes[0, 1:], chosen, heats, strict=True):
        title = f'{class_name(labels[index], names)}: score {float(found.scores[index]):.2f}'
        shown = show_heat(axis, sample.pixels, heat, title, Normalize(0, 1), alpha=0.6)
        left, top, right, bottom = found.bboxes[index].tolist()
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=MARK, linewidth=2)
        )
    add_colour_bar(figure, shown, axes, 'evidence / its maximum')
    return figure


def _logits(model: Any, x: Tensor) -> Tensor:
    """Logits (B, classes) of ours or of mmpretrain's classifier."""
    if hasattr(model, 'extract_feat'):
        return model.head((model.extract_feat(x)[-1],))
    return model(x)


def _detect(model: Any, x: Tensor) -> Any:
    """Detections of one image (1, C, H, W), the best first, as mmdet's `InstanceData`."""
    from mmdet.structures import DetDataSample

    size = tuple(x.shape[2:])
    sample = DetDataSample(
        metainfo=dict(
            img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
            scale_factor=(1.0, 1.0),
        )
    )  # fmt: skip
    with _undetached_scores():
        found = model.predict(x, [sample], rescale=False)[0].pred_instances
    return found[found.scores.argsort(descending=True)]


@contextmanager
def _undetached_scores() -> Iterator[None]:
    """Let dense heads keep the graph of their scores, which mmdet cuts off for predictions."""
    from mmdet.models.dense_heads import base_dense_head

    def select(maps: list[Tensor], image: int, detach: bool = True) -> list[Tensor]:
        return [level[image] for level in maps]

    before = base_dense_head.select_single_mlvl
    base_dense_head.select_single_mlvl = select
    try:
        yield
    finally:
        base_dense_head.select_single_mlvl = before


def _token_layers(backbone: Backbone) -> list[nn.Module]:
    """Return the modules whose outputs are the tokens (B, N, C) of the backbone's feature maps."""
    if isinstance(backbone, TwinsSVT):
        return [backbone.norm_list[i] for i in backbone.out_indices]
    return [backbone.blocks[i] for i in backbone.out_indices]


def _run(
    forward: Callable[[Tensor], Tensor],
    model: nn.Module,
    backbone: Backbone,
    layers: list[nn.Module],
    sample: Sample,
    targets: Sequence[Callable[[Tensor], Tensor]],
    method: str,
) -> list[np.ndarray]:
    """Return a heat map (H, W) in [0, 1] for each target of the model's output."""
    try:
        import pytorch_grad_cam
    except ImportError:
        raise ImportError(
            'Grad-CAM needs the package grad-cam, which is not installed: pip install grad-cam'
        ) from None

    height, width = sample.size
    strides = {*backbone.out_strides, getattr(backbone, 'patch_size', backbone.out_strides[-1])}
    grids = {
        ceil_div(height, s) * ceil_div(width, s): (ceil_div(height, s), ceil_div(width, s))
        for s in strides
    }

    def to_maps(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, grids[tokens.shape[1]]).permute(0, 3, 1, 2)

    class Called(nn.Module):
        """The model with the output that is explained."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    with (
        evaluating(model),
        kernels.use('reference'),
        torch.enable_grad(),
        getattr(pytorch_grad_cam, method)(Called(), layers, reshape_transform=to_maps) as cam,
    ):
        return [cam(input_tensor=sample.input, targets=[target])[0] for target in targets]
