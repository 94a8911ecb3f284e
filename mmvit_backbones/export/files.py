"""Exported files: write one with its description, load it, compare it with the model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.export.capture import FUSED, INPUT, capture, flatten
from mmvit_backbones.export.formats import FORMATS, Runner, find_format
from mmvit_backbones.export.sources import Source, describe
from mmvit_backbones.models import Classifier


def export_model(
    model: nn.Module | Source,
    path: str | Path,
    format: str = 'onnx',
    size: tuple[int, int] = (512, 512),
    attention: str = FUSED,
    dynamic: bool = True,
) -> dict[str, Any]:
    """Write a model to a file that runs without this package, and its description beside it.

    The description is `path` with `.json` added: inputs and outputs by name, preprocessing, and
    what is left to do with the outputs.

    Args:
        model: A backbone or classifier of this package, or a `Source`.
        path: The file; it ends in `.onnx`, `.pt2` (torch, aoti) or `.xml` (openvino, with a `.bin`
            beside it).
        format: `'onnx'`; `'torch'`, a program of `torch.export`; `'aoti'`, machine code of Inductor
            for this kind of machine; or `'openvino'`.
        size: Height and width in pixels that the graph is meant for. A dynamic graph serves others
            too; its attention takes the form with the fewest operations at this one.
        attention: `'fused'` or `'explicit'`, see `capture`.
        dynamic: Serve any batch and any image size from 32 px; else only one image of `size`.

    Returns:
        The description.

    Raises:
        ValueError: If an argument is out of its range.
        ModuleNotFoundError: If the format needs a package that is not installed.
    """
    path = Path(path)
    kind = find_format(format, path)
    source = model if isinstance(model, Source) else describe(_checked(model))
    least = source.min_size
    if min(size) < least:
        raise ValueError(f'size must be at least {least} px high and wide, got {size}')
    images = torch.zeros(2 if dynamic else 1, _in_channels(source.model), *size)
    program = capture(source.model, images, attention, dynamic, least)
    with torch.no_grad():
        names = _output_names(source.names, source.model.eval()(images[:1]))
    kind.write(program, names, path)
    any_or = dict(zip(('B', 'H', 'W'), ('B', 'H', 'W') if dynamic else (1, *size), strict=True))
    description = dict(
        format=format,
        **source.metadata,
        input=dict(
            name=INPUT,
            shape=[any_or['B'], images.shape[1], any_or['H'], any_or['W']],
            dtype='float32',
            min_size=least,
        ),
        outputs=names,
        written_for=list(size),
    )
    description_path(path).write_text(json.dumps(description, indent=1) + '\n')
    return description


def load_exported(path: str | Path) -> Runner:
    """Load a file of `export_model`.

    Returns:
        A function of normalized images (B, C, H, W) that returns the outputs as a flat tuple, in
        the order in which the description names them.

    Raises:
        FileNotFoundError: If the file or its description is missing.
        ModuleNotFoundError: If the format needs a package that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'path must be an exported file, got {str(path)!r}')
    format = json.loads(description_path(path).read_text())['format']
    return find_format(format, path).load(path)


def description_path(path: Path) -> Path:
    """Where the description of an exported file stands."""
    return path.with_name(path.name + '.json')


def exported_bytes(path: Path) -> int:
    """Size of an exported file, with that of its weights where they stand apart."""
    parts = (
        [path, path.with_suffix('.bin')] if path.suffix == FORMATS['openvino'].suffix else [path]
    )
    return sum(part.stat().st_size for part in parts)


@dataclass(frozen=True)
class Check:
    """A file beside the model in eager mode, on one batch of random images.

    Attributes:
        batch: Images.
        height: Rows in pixels.
        width: Columns in pixels.
        error: Largest absolute difference of any output.
        largest: Largest absolute value of any output.
        eager_ms: Median time per image of the model, in milliseconds.
        exported_ms: The same of the file.
    """

    batch: int
    height: int
    width: int
    error: float
    largest: float
    eager_ms: float
    exported_ms: float


def verify(
    model: nn.Module, path: str | Path, sizes: Iterable[Sequence[int]], repeats: int = 3
) -> list[Check]:
    """Run a file and the model that it was written from on the same random images.

    Args:
        model: The model.
        path: The file.
        sizes: Batch, height and width of each comparison.
        repeats: Runs of each that are timed.

    Raises:
        ValueError: If the outputs differ in number or shape.
    """
    run, model = load_exported(path), model.eval()
    generator = torch.Generator().manual_seed(0)
    checks = []
    for batch, height, width in sizes:
        images = torch.randn(batch, _in_channels(model), height, width, generator=generator)
        with torch.no_grad():
            expected, eager_ms = _timed(lambda x: flatten(model(x)), images, repeats)
        found, exported_ms = _timed(run, images, repeats)
        shapes = [tuple(tensor.shape) for tensor in expected]
        if [tuple(tensor.shape) for tensor in found] != shapes:
            raise ValueError(
                f'{path} must return {shapes} for {tuple(images.shape)}, got '
                f'{[tuple(tensor.shape) for tensor in found]}'
            )
        errors = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
        largest = max(float(tensor.abs().max()) for tensor in expected)
        checks.append(Check(batch, height, width, max(errors), largest, eager_ms, exported_ms))
    return checks


def format_checks(checks: Iterable[Check]) -> str:
    """Lay checks out as a Markdown table."""
    lines = [
        '| images | largest error | largest value | eager ms / image | exported ms / image |',
        '|---|---|---|---|---|',
    ]
    for c in checks:
        lines.append(
            f'| {c.batch} of {c.height} x {c.width} | {c.error:.1e} | {c.largest:.3g} '
            f'| {c.eager_ms:.1f} | {c.exported_ms:.1f} |'
        )
    return '\n'.join(lines)


def _timed(
    run: Callable[[Tensor], Sequence[Tensor]], images: Tensor, repeats: int
) -> tuple[Sequence[Tensor], float]:
    """Return the outputs and the median milliseconds per image of the runs after the first."""
    outputs = run(images)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - started)
    return outputs, 1000 * median(seconds) / len(images) if seconds else 0.0


def _checked(model: nn.Module) -> Backbone | Classifier:
    if not isinstance(model, (Backbone, Classifier)):
        raise ValueError(
            'model must be a backbone or classifier of this package, or a Source, got '
            f'{type(model).__name__}'
        )
    return model


def _in_channels(model: nn.Module) -> int:
    return next(m.in_channels for m in model.modules() if isinstance(m, Backbone))


def _output_names(names: Sequence[str], outputs: Any) -> list[str]:
    """Name every output; see `Source.names`."""
    if isinstance(outputs, Tensor):
        return [names[0]]
    if all(isinstance(part, Tensor) for part in outputs):
        outputs = [outputs]
    return [
        f'{name}_{i}'
        for name, part in zip(names, outputs, strict=False)
        for i in range(len(flatten(part)))
    ]
