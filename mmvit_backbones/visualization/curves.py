"""Losses and metrics of training runs, from the logs that MMEngine writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Curve = list[tuple[int, float]]
# One number says how good a model is; the other metrics of a toolkit are asked for by name.
MAIN_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')
SMOOTHING = 0.03  # share of a curve that is averaged
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000')


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """Read the scalars of the latest run in a work folder.

    A resumed run writes a log of its own: for a step that stands in several, the latest counts. A
    run that starts anew replaces the earlier ones.

    Args:
        work_dir: Folder that `tools/train.py` wrote.

    Returns:
        Name -> (step, value) in the order of steps.

    Raises:
        FileNotFoundError: If there is no log in it.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'work_dir must hold logs (*/vis_data/scalars.json), got {str(work_dir)!r}'
        )
    found: dict[str, dict[int, float]] = {}
    start = None
    for log in logs:
        records = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
        if records and (start is None or records[0]['step'] <= start):
            found, start = {}, records[0]['step']
        for record in records:
            step = record.pop('step')
            for name, value in record.items():
                if isinstance(value, (int, float)):
                    found.setdefault(name, {})[step] = value
    return {name: sorted(curve.items()) for name, curve in found.items()}


def draw_curves(work_dirs: Sequence[str | Path], names: Sequence[str] | None = None) -> Figure:
    """Draw the curves of one or several runs into one panel for each name.

    Args:
        work_dirs: Folders of the runs.
        names: Scalars to draw; by default the loss, the learning rate and the main metrics.

    Raises:
        FileNotFoundError: If a folder has no log.
        ValueError: If no run has a name, or none is given.
    """
    runs = {str(folder): read_scalars(folder) for folder in work_dirs}
    known = sorted({name for run in runs.values() for name in run})
    if names is None:
        names = [name for name in ('loss', 'lr', *MAIN_METRICS) if name in known]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f'names must be scalars of a run, one of {known}, got {unknown}')
    columns = min(3, len(names))
    rows = ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.7), layout='constrained', dpi=120)
    figure.suptitle('Training runs', fontsize=13, fontweight='bold')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        _draw_panel(axis, name, {run: scalars.get(name, []) for run, scalars in runs.items()})
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', fontsize=9, frameon=False)
    return figure


def _draw_panel(axis: Axes, name: str, curves: dict[str, Curve]) -> None:
    is_metric = name in MAIN_METRICS
    for (run, curve), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
        if not curve:
            axis.plot([], [], color=colour, label=_short(run))
            continue
        steps, values = np.array(curve, dtype=float).T
        if is_metric:
            axis.plot(steps, values, 'o-', color=colour, label=_short(run), markersize=4)
            best = values.argmax()
            axis.annotate(
                f'{values[best]:.3g}',
                (steps[best], values[best]),
                xytext=(0, 5),
                textcoords='offset points',
                ha='center',
                fontsize=8,
                color=colour,
            )
        else:
            smooth = smoothed(values)
            if len(smooth) and not np.array_equal(smooth, values):
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(steps, smooth, color=colour, label=_short(run), linewidth=1.8)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel('epoch or iteration' if is_metric else 'iteration', fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(y=0.12)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if not is_metric else None)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Average each value with its neighbours, fewer of them at the ends."""
    half = int(len(values) * SMOOTHING / 2)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _short(run: str) -> str:
    """Name a run by its last two folders."""
    return '/'.join(Path(run).parts[-2:])
