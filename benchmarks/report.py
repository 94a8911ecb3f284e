"""What was measured, as tables, CSV and a plot: python -m benchmarks.report FILE.csv."""

from __future__ import annotations

import argparse
import csv
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from datetime import date
from importlib.metadata import distributions
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import Row
from benchmarks.peers import OURS
from mmvit_backbones import __version__

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PACKAGES = (
    *('torch', 'mmcv', 'onedl-mmcv', 'timm', 'mmpretrain', 'onedl-mmpretrain', 'mmsegmentation'),
    *('onedl-mmsegmentation', 'vit-pytorch', 'onnxruntime', 'openvino'),
)
BLUE, ORANGE = '#0072b2', '#e69f00'


def machine_name(device: torch.device) -> str:
    """Return the processor's name, or the GPU's, and the number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file() and (found := re.search(r'model name\s*: (.*)', cpuinfo.read_text())):
        name = found[1]
    return f'{name}, {torch.get_num_threads()} threads'


def versions() -> str:
    """Return our commit and the versions of all packages that are compared."""
    describe = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--exclude=*']
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    installed = {found.name: found.version for found in distributions()}
    packages = [f'{name} {installed[name]}' for name in PACKAGES if name in installed]
    return ', '.join([f'mmvit-backbones {commit or __version__}', *packages])


def results_path(machine: str, suffix: str = '.csv') -> Path:
    """Return where today's results of a machine are kept."""
    slug = re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')
    return RESULTS / f'{date.today()}_{slug}{suffix}'


def write_csv(rows: Sequence[Row], path: Path, machine: str) -> None:
    """Add rows to a CSV file, a column a field of `Row`, with date, machine and versions.

    Raises:
        ValueError: If the file is there and has other columns.
    """
    extra = dict(date=str(date.today()), machine=machine, versions=versions())
    columns = [*(field.name for field in fields(Row)), *extra]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+', newline='') as file:
        file.seek(0)
        found = next(csv.reader(file), None)
        if found not in (None, columns):
            raise ValueError(f'{path} has other columns, {found}; give another file by --out')
        writer = csv.DictWriter(file, columns)
        if found is None:
            writer.writeheader()
        writer.writerows(asdict(row) | extra for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Read the rows of a CSV file of `write_csv`; memory that it has no column of is None."""
    kinds: dict[str, Any] = {'str': str, 'int': int, 'float': float}
    kinds['float | None'] = lambda text: float(text) if text else None
    with path.open(newline='') as file:
        return [
            Row(**{field.name: kinds[str(field.type)](line[field.name]) for field in fields(Row)})
            for line in (dict(allocated='') | line for line in csv.DictReader(file))
        ]


def table(titles: str, lines: Iterable[Sequence[str]]) -> str:
    """Lay cells out as a Markdown table under titles that are separated by `|`."""
    bar = '|' + '---|' * (titles.count('|') + 1)
    return '\n'.join([f'| {titles} |', bar, *(f'| {" | ".join(cells)} |' for cells in lines)])


def format_table(rows: Iterable[Row]) -> str:
    """Lay rows out as a Markdown table."""
    titles = (
        'network | images | pass | subject | form | median s | IQR | min s | peak MiB | allocated '
        '| of peak'
    )
    lines = []
    for r in rows:
        times = f'{r.seconds:.4g}', f'{r.iqr / r.seconds:.1%}', f'{r.fastest:.4g}'
        last = cell(r.mebibytes, '.0f'), cell(r.allocated, '.0f'), f'{r.peak_share:.0%}'
        lines.append([r.network, images(r), r.run, r.subject, r.form, *times, *last])
    return table(titles, lines)


def images(row: Row) -> str:
    """Return batch and size."""
    return f'{row.batch} of {row.height} x {row.width}'


def cell(value: float | None, form: str) -> str:
    """Return a number in a format, nothing for none."""
    return '' if value is None else format(value, form)


class Best(NamedTuple):
    """Our fastest form and the fastest form of any peer, under one setting and precision."""

    ours: Row
    peer: Row

    @property
    def speedup(self) -> float:
        return self.peer.seconds / self.ours.seconds

    @property
    def memory_share(self) -> float | None:
        """Peak memory of ours over the peer's, of these same forms."""
        pair = self.ours.memory_beside(self.peer)
        return pair[0] / pair[1] if pair else None


def find_best(rows: Iterable[Row]) -> list[Best]:
    """Pair the fastest row of ours with the fastest of the peers: network, size, pass, precision.

    Settings in which one side is missing are left out.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.network, row.height, row.width, row.batch, row.run, row.precision)
        groups.setdefault(key, []).append(row)
    found = []
    for group in groups.values():
        group.sort(key=lambda row: row.seconds)
        ours = next((row for row in group if row.subject == OURS), None)
        peer = next((row for row in group if row.subject != OURS), None)
        if ours and peer:
            found.append(Best(ours, peer))
    return found


def format_best(bests: Iterable[Best]) -> str:
    """Lay the ratios out as a Markdown table."""
    titles = 'network | images | pass | precision | our form | peer | its form | speed-up | memory'
    lines = []
    for best in bests:
        ours, peer = best
        setting = ours.network, images(ours), ours.run, ours.precision, ours.form
        ratios = f'{best.speedup:.2f}', cell(best.memory_share, '.2f')
        lines.append([*setting, peer.subject, peer.form, *ratios])
    return table(titles, lines)


def fit_power(pixels: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return exponent and factor of the power of `pixels` that fits `values` best.

    Args:
        pixels: Pixels of the images.
        values: A time or memory each; least squares of their logarithms.
    """
    xs, ys = [log(p) for p in pixels], [log(v) for v in values]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    exponent = covariance / sum((x - x_mean) ** 2 for x in xs)
    return exponent, exp(y_mean - exponent * x_mean)


def _curves(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """Group rows that differ in size alone by pass, subject, form and network; small ones first."""
    curves: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in sorted(rows, key=_pixels):
        curves.setdefault((row.run, row.subject, row.form, row.network), []).append(row)
    return {name: points for name, points in curves.items() if len(points) > 1}


def _pixels(row: Row) -> int:
    return row.batch * row.height * row.width


def format_growth(rows: Iterable[Row]) -> str:
    """Say how time and memory grow with the pixels, and from where which network is the faster."""
    curves, lines = _curves(rows), []
    for (*name, network), points in curves.items():
        pixels = [_pixels(row) for row in points]
        exponent, _ = fit_power(pixels, [row.fastest for row in points])
        line = f'- {network} {" ".join(name)}: time grows with pixels^{exponent:.3f}'
        pairs = [row.memory_beside(points[0]) for row in points]
        memory = [pair[0] for pair in pairs if pair]
        if len(memory) == len(points):
            line += f', peak memory with pixels^{fit_power(pixels, memory)[0]:.3f}'
        lines.append(line)
    for (*name, network), points in curves.items():
        for (*other_name, other), other_points in curves.items():
            if name == other_name and network < other:
                for at, winner in _crossings(points, other_points):
                    lines.append(f'- {" ".join(name)}: {winner} is the faster from {at:.3g} pixels')
    return '\n'.join(lines)


def _crossings(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[float, str]]:
    """Return pixels and the network that is faster from there on; straight lines between logs."""
    times = {_pixels(row): row.seconds for row in other}
    gaps = [(_pixels(a), log(a.seconds / times[_pixels(a)])) for a in one if _pixels(a) in times]
    found = []
    for (p, gap), (q, next_gap) in pairwise(gaps):
        if gap * next_gap < 0:
            pixels = p * (q / p) ** (gap / (gap - next_gap))
            found.append((pixels, (one if next_gap < 0 else other)[0].network))
    return found


def draw_speed(bests: Sequence[Best], path: Path) -> None:
    """Draw the speed of our fastest form over the fastest peer form as bars, a pass a colour."""
    from matplotlib.figure import Figure

    names = [f'{b.ours.network}\n{images(b.ours)}\n{b.ours.precision}' for b in bests]
    labels = list(dict.fromkeys(names))
    figure = Figure(figsize=(2 + 1.2 * len(labels), 3.6), layout='constrained')
    axis = figure.subplots()
    for run, shift, colour in (('forward', -0.19, BLUE), ('train', 0.19, ORANGE)):
        chosen = [(name, b) for name, b in zip(names, bests, strict=True) if b.ours.run == run]
        places = [labels.index(name) + shift for name, _ in chosen]
        heights = [b.speedup for _, b in chosen]
        bars = axis.bar(places, heights, 0.36, color=colour, label=run)
        axis.bar_label(bars, fmt='%.2f', fontsize=8)
    axis.axhline(1, color='black', linewidth=1)
    axis.set(xticks=range(len(labels)), ylabel='our fastest form over the fastest peer')
    axis.set_xticklabels(labels, fontsize=8)
    axis.legend(fontsize=8)
    figure.savefig(path, facecolor='white')


def format_report(rows: Sequence[Row]) -> str:
    """Return all tables: every row, the ratios, and the growth where there are several sizes."""
    parts = (format_table(rows), format_best(find_best(rows)), format_growth(rows))
    return '\n\n'.join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('csv', type=Path, nargs='+', help='files of benchmarks.run')
    parser.add_argument('--speed', type=Path, help='draw the ratios to this file')
    args = parser.parse_args()
    rows = [row for path in args.csv for row in read_csv(path)]
    print(format_report(rows))
    if args.speed:
        draw_speed(find_best(rows), args.speed)


if __name__ == '__main__':
    main()
