"""Predictions beside the ground truth, for detectors, segmentors and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from mmvit_backbones.visualization.capture import evaluating
from mmvit_backbones.visualization.drawing import PANEL, make_figure, show_image
from mmvit_backbones.visualization.grad_cam import class_name
from mmvit_backbones.visualization.loading import Subject

PALETTE = (
    *((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180)),
    *((240, 190, 40), (0, 150, 136), (240, 50, 230), (128, 128, 0), (70, 70, 240)),
)


def predict(subject: Subject, number: int = 4) -> list[Any]:
    """Run a model of a toolkit on images of its config's test data.

    Args:
        subject: A model that was built from a config.
        number: Images, spread evenly over the data.

    Returns:
        Data samples of the toolkit with ground truth and predictions.

    Raises:
        ValueError: If the model was built by name, which has no test data, or `number` is below 1.
    """
    if subject.cfg is None:
        raise ValueError('predictions need a model from a config, which names the test data')
    if number < 1:
        raise ValueError(f'number must be at least 1, got {number}')
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    loader = subject.cfg.get('test_dataloader') or subject.cfg.get('val_dataloader')
    dataset = DATASETS.build(loader.dataset)
    step = max(1, len(dataset) // number)
    results: list[Any] = []
    with evaluating(subject.model), torch.no_grad():
        for index in range(0, len(dataset), step)[:number]:
            batch = pseudo_collate([dataset[index]])
            results += subject.model.test_step(batch)  # type: ignore[operator]
    return results


def draw_predictions(
    samples: Sequence[Any],
    classes: Sequence[str] | None = None,
    score: float = 0.3,
    title: str = 'Predictions beside the ground truth',
) -> Figure:
    """Draw what `predict` returns.

    Args:
        samples: Data samples of mmdet, mmseg or mmpretrain with the path of their image.
        classes: Names of the classes.
        score: Detections below it are left out.
        title: Above the picture.

    Raises:
        ValueError: If there are no samples, or they hold no predictions that can be drawn.
    """
    if not samples:
        raise ValueError('samples must hold at least one data sample, got none')
    first = samples[0]
    if 'pred_instances' in first:
        return _draw_pairs(samples, classes, title, partial(_draw_boxes, score))
    if 'pred_sem_seg' in first:
        return _draw_pairs(samples, classes, title, _draw_segments)
    if 'pred_label' in first:
        return _draw_labels(samples, classes, title)
    raise ValueError(f'samples must hold predictions of a toolkit, got fields {first.keys()}')


def _read(sample: Any) -> np.ndarray:
    with Image.open(sample.img_path) as file:
        return np.asarray(file.convert('RGB'))


def _colour(index: int) -> tuple[float, float, float]:
    red, green, blue = PALETTE[index % len(PALETTE)]
    return red / 255, green / 255, blue / 255


def _draw_pairs(
    samples: Sequence[Any], classes: Sequence[str] | None, title: str, draw: Any
) -> Figure:
    """Draw image, truth and prediction in a row for each sample, with a legend of the classes."""
    images = [_read(sample) for sample in samples]
    pairs = 2 if len(samples) > 2 else 1
    rows = [images[i : i + pairs] for i in range(0, len(images), pairs)]
    aspects = [max(image.shape[0] / image.shape[1] for image in row) for row in rows]
    figure, axes = make_figure(len(rows), 2 * pairs, title, aspect=aspects)
    seen: set[int] = set()
    panels = axes.reshape(-1, 2)
    for (truth, prediction), sample, image in zip(panels, samples, images, strict=False):
        seen |= draw(truth, sample, image, True)
        seen |= draw(prediction, sample, image, False)
        truth.set_title('ground truth', fontsize=9)
    for pair in panels[len(samples) :]:
        for axis in pair:
            axis.set_axis_off()
    handles = [Patch(color=_colour(i), label=class_name(i, classes)) for i in sorted(seen)]
    figure.legend(
        handles=handles, loc='outside lower center', ncols=min(6, max(1, len(handles))),
        fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def _draw_boxes(score: float, axis: Axes, sample: Any, image: np.ndarray, truth: bool) -> set[int]:
    show_image(axis, image)
    found = sample.gt_instances if truth else sample.pred_instances
    if not truth:
        found = found[found.scores >= score]
        axis.set_title(f'prediction: {len(found)} with score {score} or more', fontsize=9)
    boxes = getattr(found.bboxes, 'tensor', found.bboxes).cpu().tolist()
    labels = found.labels.tolist()
    if 'masks' in found:
        _draw_masks(axis, _as_array(found.masks), labels)
    for index, ((left, top, right, bottom), label) in enumerate(zip(boxes, labels, strict=True)):
        colour = _colour(label)
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, lw=1.8)
        )
        if not truth:
            axis.text(
                left, top, f'{float(found.scores[index]):.2f}', fontsize=6.5, color='white',
                va='bottom', bbox=dict(facecolor=colour, edgecolor='none', pad=0.8),
            )  # fmt: skip
    return set(labels)


def _as_array(masks: Any) -> np.ndarray:
    """Masks (instances, H, W) of a tensor or of mmdet's structures."""
    masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks.cpu().numpy()
    return masks.astype(bool)


def _draw_masks(axis: Axes, masks: np.ndarray, labels: Sequence[int]) -> None:
    for mask, label in zip(masks, labels, strict=True):
        layer = np.zeros((*mask.shape, 4))
        layer[mask] = (*_colour(label), 0.45)
        axis.imshow(layer, extent=(0, mask.shape[1], mask.shape[0], 0), interpolation='nearest')


def _draw_segments(axis: Axes, sample: Any, image: np.ndarray, truth: bool) -> set[int]:
    grey = np.repeat(image.mean(axis=2, keepdims=True) / 255, 3, axis=2)  # hides no label's colour
    show_image(axis, grey)
    segments = (sample.gt_sem_seg if truth else sample.pred_sem_seg).data[0].cpu().numpy()
    labels = sorted(set(np.unique(segments).tolist()) - {255})
    layer = np.zeros((*segments.shape, 4))
    for label in labels:
        layer[segments == label] = (*_colour(label), 0.6)
    axis.imshow(layer, extent=(0, image.shape[1], image.shape[0], 0), interpolation='nearest')
    if not truth:
        target = sample.gt_sem_seg.data[0].cpu().numpy()
        valid = target != 255
        right = float((segments == target)[valid].mean()) if valid.any() else 0.0
        axis.set_title(f'prediction: {right:.0%} of pixels right', fontsize=9)
    return set(labels)


def _draw_labels(samples: Sequence[Any], classes: Sequence[str] | None, title: str) -> Figure:
    """Draw each image with its label and the chances of the best classes."""
    columns = min(4, len(samples))
    rows = ceil(len(samples) / columns)
    figure = Figure(
        figsize=(columns * PANEL + 0.4, rows * (PANEL + 1.3) + 0.7), layout='constrained', dpi=120
    )
    figure.suptitle(title, fontsize=13, fontweight='bold')
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[PANEL, 0.9] * rows)
    for index, sample in enumerate(samples):
        image_axis = axes[2 * (index // columns), index % columns]
        bar_axis = axes[2 * (index // columns) + 1, index % columns]
        chances = sample.pred_score.cpu()
        best = chances.topk(min(4, len(chances)))
        truth = int(sample.gt_label[0])
        right = int(best.indices[0]) == truth
        show_image(image_axis, _read(sample))
        image_axis.set(xticks=[], yticks=[])
        image_axis.set_title(
            f'{"right" if right else "wrong"}: is {class_name(truth, classes)}',
            fontsize=9,
            color='#1b7837' if right else '#b2182b',
        )
        names = [class_name(i, classes) for i in best.indices.tolist()]
        colours = ['#1b7837' if i == truth else '0.6' for i in best.indices.tolist()]
        bar_axis.barh(names, best.values.tolist(), color=colours)
        bar_axis.invert_yaxis()
        bar_axis.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        bar_axis.tick_params(labelsize=8)
        bar_axis.set_xlabel('chance', fontsize=8)
    for axis in axes.flat:
        if not axis.has_data():
            axis.set_axis_off()
    return figure
