"""Time and memory of our backbones and of every peer that is installed, side by side.

Subjects take turns on the same input, so that a machine whose speed drifts is fair to all; what
counts are ratios within one run. Peak memory is what a pass needs beyond the resident weights.
"""

from __future__ import annotations

import csv
import ctypes
import gc
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from math import log, nan
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from mmvit_backbones.complexity import count_multiply_adds
from mmvit_backbones.fuse import fuse
from mmvit_backbones.models import create_model

OURS = 'ours'
FUSED = 'ours-fused'
CHECKPOINTED = 'ours-with-cp'
VARIANTS = {FUSED: 'forward', CHECKPOINTED: 'train'}  # the one pass that each is made for
PASSES = ('forward', 'train')
PRECISIONS = ('fp32', 'bf16')
PACKAGES = ('torch', 'mmcv', 'onedl-mmcv', 'timm', 'mmpretrain', 'onedl-mmpretrain', 'vit-pytorch')


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        network: A name of `list_models`.
        height: Rows of the images in pixels.
        width: Columns of the images in pixels.
        batch: Images.
        run: `forward` (without gradients) or `train` (forward and backward).
        precision: `fp32` or `bf16` (autocast).
        compiled: Through `torch.compile`.
        channels_last: Weights and images in channels_last format.
    """

    network: str
    height: int
    width: int
    batch: int
    run: str
    precision: str
    compiled: bool
    channels_last: bool


@dataclass(frozen=True)
class Row:
    """One line of the table: a subject under a setting.

    Attributes:
        subject: `ours`, one of `VARIANTS` or the package.
        seconds: Median wall time of a pass.
        fastest: Shortest wall time.
        speedup: How many times faster than the fastest peer; None without a peer.
        mebibytes: Peak memory beyond the weights; None where it cannot be measured.
        memory_share: Peak memory over that of the fastest peer.
        peak_share: Share of the machine's matrix-product rate, by ours' multiply-adds; in training
            three times those of the forward pass are counted.
    """

    subject: str
    network: str
    height: int
    width: int
    batch: int
    run: str
    precision: str
    compiled: bool
    channels_last: bool
    seconds: float
    fastest: float
    speedup: float | None
    mebibytes: float | None
    memory_share: float | None
    peak_share: float


class _Maps(nn.Module):
    """A peer with an extraction call of its own, as a module from images to maps."""

    def __init__(self, model: nn.Module, extract: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.extract = extract

    def forward(self, x: Tensor) -> Any:
        return self.extract(self.model, x)


def _build_ours(network: str, **settings: Any) -> nn.Module:
    if network.startswith('xcit'):  # peers have no pyramid; without it the same maps are compared
        settings['pyramid'] = False
    return create_model(network, **settings)


def _build_fused(network: str) -> nn.Module:
    return fuse(_build_ours(network))


def _build_checkpointed(network: str) -> nn.Module:
    return _build_ours(network, with_cp=True)


def _build_timm(network: str) -> nn.Module:
    import timm

    is_xcit = network.startswith('xcit')
    model = timm.create_model(f'{network}_224' if is_xcit else network, num_classes=0)
    depth = len(model.blocks)  # type: ignore[arg-type]
    indices = [depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1] if is_xcit else None

    def extract(peer: Any, x: Tensor) -> Any:
        return peer.forward_intermediates(x, indices=indices, intermediates_only=True)

    return _Maps(model, extract)


def _build_mmpretrain(network: str) -> nn.Module:
    from mmpretrain.registry import MODELS

    from mmvit_backbones.backbones.xcit import XCiT

    if network.startswith('twins'):
        arch = network.removeprefix('twins_svt_')
        return MODELS.build(
            dict(type='mmpretrain.SVT', arch=arch, qkv_bias=True, out_indices=(0, 1, 2, 3))
        )
    with torch.device('meta'):
        ours = create_model(network, pyramid=False)
    assert isinstance(ours, XCiT)
    return MODELS.build(
        dict(
            type='mmpretrain.XCiT',
            patch_size=ours.out_strides[0],
            embed_dims=ours.arch.embed_dims,
            depth=ours.arch.depth,
            num_heads=ours.arch.num_heads,
            mlp_ratio=4,
            qkv_bias=True,
            layer_scale_init_value=ours.arch.layer_scale,
            tokens_norm=ours.arch.tokens_norm,
            out_type='featmap',
            out_indices=ours.out_indices,
        )
    )


def _build_mmseg(network: str) -> nn.Module:
    from mmseg.registry import MODELS

    from mmvit_backbones.backbones.twins_svt import ARCHS

    arch = ARCHS[network.removeprefix('twins_svt_')]
    return MODELS.build(
        dict(
            type='mmseg.SVT',
            embed_dims=list(arch.embed_dims),
            num_heads=list(arch.num_heads),
            mlp_ratios=[arch.mlp_ratio] * 4,
            out_indices=(0, 1, 2, 3),
            qkv_bias=True,
            depths=[len(stage) for stage in arch.stages],
            windiow_sizes=[arch.window_size] * 4,  # sic
            sr_ratios=list(arch.sr_ratios),
            norm_after_stage=True,
        )
    )


def _build_vit_pytorch(network: str) -> nn.Module:
    from vit_pytorch.twins_svt import TwinsSVT

    def extract(peer: Any, x: Tensor) -> Any:
        maps = []
        for stage in peer.layers[:4]:
            x = stage(x)
            maps.append(x)
        return maps

    return _Maps(TwinsSVT(num_classes=1), extract)


def builders(network: str) -> dict[str, Callable[[str], nn.Module]]:
    """Return who has a network of this structure: subject -> function that builds it."""
    found: dict[str, Callable[[str], nn.Module]] = {
        OURS: _build_ours,
        FUSED: _build_fused,
        CHECKPOINTED: _build_checkpointed,
    }
    if network == 'twins_svt_vit_pytorch':
        return found | {'vit-pytorch': _build_vit_pytorch}
    found |= {'timm': _build_timm, 'mmpretrain': _build_mmpretrain}
    if network.startswith('twins'):
        found['mmseg'] = _build_mmseg
    return found


def build_subjects(network: str, wanted: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Build ours and all wanted peers; a peer that is not installed is named and left out.

    Args:
        network: A name of `list_models`.
        wanted: Subjects; by default all but `VARIANTS`.
    """
    subjects = {}
    for name, build in builders(network).items():
        if name not in wanted if wanted is not None else name in VARIANTS:
            continue
        try:
            subjects[name] = build(network)
        except ImportError as error:
            print(f'{name} is left out: {error}')
    return subjects


def measure(
    setting: Setting,
    subjects: dict[str, nn.Module],
    device: torch.device,
    repeats: int,
    peak_rate: float,
) -> list[Row]:
    """Measure all subjects under one setting, in turns.

    Args:
        setting: What to measure.
        subjects: Name -> model; they are left on `device`. `VARIANTS` sit out what they are not
            made for.
        device: Where.
        repeats: Passes of each that count, after two that do not.
        peak_rate: Multiply-adds a second of the machine's matrix product, in this precision.
    """
    x = torch.randn(setting.batch, 3, setting.height, setting.width, device=device)
    if setting.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    passes = {
        name: _prepare(model, setting, x)
        for name, model in subjects.items()
        if VARIANTS.get(name, setting.run) == setting.run
    }
    for run_pass in passes.values():
        run_pass()
        run_pass()
    memory = {name: _peak_memory(run_pass, device) for name, run_pass in passes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(repeats):
        for name, run_pass in passes.items():
            seconds[name].append(_time(run_pass, device))
    peers = [name for name in passes if name not in (OURS, *VARIANTS)]
    best_peer = min(peers, key=lambda name: median(seconds[name])) if peers else None
    work = setting.batch * _multiply_adds(setting) * (3 if setting.run == 'train' else 1)
    rows = []
    for name in passes:
        middle = median(seconds[name])
        ours, peer = memory[name], memory[best_peer] if best_peer else None
        rows.append(
            Row(
                subject=name,
                **{f.name: getattr(setting, f.name) for f in fields(setting)},
                seconds=middle,
                fastest=min(seconds[name]),
                speedup=median(seconds[best_peer]) / middle if best_peer else None,
                mebibytes=ours,
                memory_share=ours / peer if ours is not None and peer else None,
                peak_share=work / middle / peak_rate,
            )
        )
    return rows


def _multiply_adds(setting: Setting) -> int:
    with torch.device('meta'):
        model = _build_ours(setting.network)
    return count_multiply_adds(model, setting.height, setting.width)


def _prepare(model: nn.Module, setting: Setting, x: Tensor) -> Callable[[], None]:
    model.to(x.device).train(setting.run == 'train')
    if setting.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    function: Callable[[Tensor], Any] = torch.compile(model) if setting.compiled else model

    def autocast() -> AbstractContextManager:
        if setting.precision == 'bf16':
            return torch.autocast(x.device.type, torch.bfloat16)
        return nullcontext()

    def forward() -> None:
        with torch.no_grad(), autocast():
            function(x)

    def train() -> None:
        with autocast():
            maps = function(x)
        loss = sum(m.float().mean() for m in maps)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return train if setting.run == 'train' else forward


def _time(run_pass: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    run_pass()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _peak_memory(run_pass: Callable[[], None], device: torch.device) -> float | None:
    """Return the most memory in MiB that a pass holds beyond what was held before it.

    On a CPU this is the resident size of the process, whose high-water mark Linux lets a process
    reset; None elsewhere.
    """
    gc.collect()
    if device.type == 'cuda':
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run_pass()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
        before_kib = _read_status('VmRSS')
        run_pass()
        return (_read_status('VmHWM') - before_kib) / 2**10
    except OSError:
        return None


def _read_status(key: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise OSError(f'/proc/self/status has no {key}')


def measure_peak_rate(device: torch.device, precision: str) -> float:
    """Return multiply-adds a second of a large square matrix product, the best of ten."""
    size = 8192 if device.type == 'cuda' else 2048
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)

    def product() -> None:
        a @ a

    product()
    return size**3 / min(_time(product, device) for _ in range(10))


def fit_exponent(pixels: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent of the power of `pixels` that fits `values` best (least squares of logs).

    Args:
        pixels: Pixels of the images.
        values: A time or memory each.
    """
    xs, ys = [log(p) for p in pixels], [log(v) for v in values]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)


def format_growth(rows: Sequence[Row]) -> str:
    """Say how time and memory of each subject grow with the pixels of the images."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f'{row.network} {row.run} {row.precision} {row.subject}', []).append(row)
    lines = []
    for name, points in groups.items():
        pixels = [row.batch * row.height * row.width for row in points]
        exponent = fit_exponent(pixels, [row.fastest for row in points])
        line = f'{name}: time grows with pixels^{exponent:.3f}'
        memory = [row.mebibytes for row in points if row.mebibytes is not None]
        if len(memory) == len(points):
            line += f', peak memory with pixels^{fit_exponent(pixels, memory):.3f}'
        lines.append(line)
    return '\n'.join(lines)


def describe_machine(device: torch.device) -> str:
    """Return the device, thread count and versions in a line."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _cpu_name()
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            continue
    return f'{name}, {torch.get_num_threads()} threads, {", ".join(versions)}'


def _cpu_name() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def format_table(rows: Iterable[Row]) -> str:
    """Lay rows out as a Markdown table."""
    lines = [
        '| network | size | batch | pass | precision | subject | median s | min s | speed-up '
        '| peak MiB | memory share | of matmul peak |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        precision = row.precision + (' compiled' if row.compiled else '')
        lines.append(
            f'| {row.network} | {row.height} x {row.width} | {row.batch} | {row.run} '
            f'| {precision}{" channels_last" if row.channels_last else ""} | {row.subject} '
            f'| {row.seconds:.3f} | {row.fastest:.3f} | {_cell(row.speedup, ".2f")} '
            f'| {_cell(row.mebibytes, ".0f")} | {_cell(row.memory_share, ".2f")} '
            f'| {row.peak_share:.0%} |'
        )
    return '\n'.join(lines)


def _cell(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV, a column a field of `Row`."""
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Row))
        for row in rows:
            writer.writerow(getattr(row, field.name) for field in fields(Row))


def draw_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw throughput and memory over image size as PNG, a row of panels a setting."""
    import matplotlib.pyplot as plt

    settings: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.height * row.width):
        compiled = ' compiled' if row.compiled else ''
        title = f'{row.network} {row.run} {row.precision}{compiled}'
        settings.setdefault(title, []).append(row)
    subjects = list(dict.fromkeys(row.subject for row in rows))
    figure, grid = plt.subplots(
        len(settings), 2, figsize=(11, 3.2 * len(settings)), squeeze=False, layout='constrained'
    )
    for (title, points), axes in zip(settings.items(), grid, strict=True):
        for i, subject in enumerate(subjects):
            line = [row for row in points if row.subject == subject]
            pixels = [row.height * row.width / 1e6 for row in line]
            rates = [row.batch / row.seconds for row in line]
            memory = [nan if row.mebibytes is None else row.mebibytes / row.batch for row in line]
            for axis, values in zip(axes, (rates, memory), strict=True):
                axis.plot(pixels, values, 'o-', color=f'C{i}', label=subject)
        for axis, label in zip(axes, ('images a second', 'peak MiB an image'), strict=True):
            axis.set(title=title, xlabel='megapixels', ylabel=label, xscale='log', yscale='log')
            axis.grid(alpha=0.3, which='both')
    grid[0, 0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
