"""The main job in small: train and evaluate our backbones on synthetic data, on a CPU, in minutes.

Everything runs through the toolkits: their readers, their heads, their metrics, their pictures.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from mmvit_backbones.datasets import write_shapes

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/shapes')  # where the configs in configs/shapes look for it
NUM_PICTURES = 6
MAX_AT_ONCE = 4  # each takes 1.5 GiB of memory
COLUMNS = ('AP', 'AP50', 'mIoU', 'top-1')


@dataclass(frozen=True)
class Job:
    """One model to train.

    Attributes:
        name: Row title and folder name.
        config: File in configs/shapes.
        metrics: Column title -> name of the metric in the toolkit's results.
        target: Column title and the least score that says the model has learned.
        unit: What the toolkit's numbers are times, to be shares: 1, or 0.01 for percent.
    """

    name: str
    config: str
    metrics: dict[str, str]
    target: tuple[str, float]
    unit: float


def _detector(name: str, config: str) -> Job:
    metrics = {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50'}
    return Job(name, config, metrics, target=('AP50', 0.8), unit=1)


def _segmentor(name: str, config: str) -> Job:
    return Job(name, config, {'mIoU': 'mIoU'}, target=('mIoU', 0.7), unit=0.01)


def _classifier(name: str, config: str) -> Job:
    return Job(name, config, {'top-1': 'accuracy/top1'}, target=('top-1', 0.95), unit=0.01)


JOBS = (
    _detector('retinanet-twins-svt', 'retinanet_twins-svt-toy_fpn_shapes.py'),
    _detector('retinanet-xcit', 'retinanet_xcit-toy_fpn_shapes.py'),
    _segmentor('upernet-twins-svt', 'twins_svt-toy_uperhead_shapes.py'),
    _segmentor('upernet-xcit', 'xcit-toy_uperhead_shapes.py'),
    _classifier('classifier-twins-svt', 'twins-svt-toy_cls_shapes.py'),
    _classifier('classifier-xcit', 'xcit-toy_cls_shapes.py'),
)


@dataclass(frozen=True)
class Result:
    """What a job came to.

    Attributes:
        job: The job.
        scores: Column title -> value in [0, 1].
        seconds: Wall time of training and evaluation.
        peak_memory: Largest resident size of the training process, in MiB.
        losses: (iteration, loss) as logged.
    """

    job: Job
    scores: dict[str, float]
    seconds: float
    peak_memory: float
    losses: list[tuple[int, float]]

    @property
    def has_learned(self) -> bool:
        column, least = self.job.target
        return self.scores[column] >= least


class DemoError(RuntimeError):
    """A tool ended with an error; the message names its log."""


def run_demo(out: Path, jobs: Sequence[Job] = JOBS, seed: int = 0) -> list[Result]:
    """Make the data, train and evaluate the jobs, some at once; print the table, draw pictures.

    Args:
        out: Absolute folder for logs, checkpoints and pictures.
        jobs: What to train.
        seed: Of the first weights and the order of the data.

    Raises:
        DemoError: If a tool fails.
    """
    started = time.monotonic()
    print(f'data: {DATA}', flush=True)
    write_shapes(ROOT / DATA, progress=True)
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(MAX_AT_ONCE, torch.get_num_threads())) as pool:
        futures = [pool.submit(run_job, job, out / job.name, seed) for job in jobs]
        try:
            results = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for job in jobs:
        draw_contact_sheet(job, out / job.name / 'pictures', out / f'{job.name}.png')
    draw_losses(results, out / 'losses.png')
    table = format_table(results)
    (out / 'results.md').write_text(table + '\n')
    print(f'\n{table}\n\n{(time.monotonic() - started) / 60:.1f} min in all')
    print(f'table, loss curves and predictions beside the ground truth: {out}')
    return results


def run_job(job: Job, folder: Path, seed: int) -> Result:
    """Train and evaluate one model by this project's tools, into a folder."""
    _say(f'{job.name}: begins')
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    config = f'configs/shapes/{job.config}'
    train_dir = folder / 'train'
    peak_memory = _run_tool(
        ['train.py', config, '--work-dir', train_dir, '--cfg-options', f'randomness.seed={seed}'],
        folder / 'train.log',
        job.name,
    )
    checkpoint = (train_dir / 'last_checkpoint').read_text()
    test_dir, pictures = folder / 'test', folder / 'pictures'
    _run_tool(
        ['test.py', config, checkpoint, '--work-dir', test_dir, '--show-dir', pictures],
        folder / 'test.log',
        job.name,
    )
    metrics = json.loads(_newest(test_dir, '*/*.json').read_text())
    return Result(
        job,
        {column: metrics[name] * job.unit for column, name in job.metrics.items()},
        time.monotonic() - started,
        peak_memory,
        _read_losses(_newest(train_dir, '*/vis_data/scalars.json')),
    )


def _run_tool(arguments: Sequence[str | Path], log: Path, title: str) -> float:
    """Run a tool of this project in its root on one thread, showing its progress.

    Args:
        arguments: Name of the tool and what it takes.
        log: File for its output.
        title: What to print before each line of progress.

    Returns:
        The largest resident size of its process, in MiB.

    Raises:
        DemoError: If it fails.
    """
    command = [sys.executable, *(str(part) for part in arguments)]
    command[1] = f'tools/{command[1]}'
    with log.open('w') as log_file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # The models are toys: more threads only get in each other's way.
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        shown = time.monotonic()
        with process.stdout:
            for line in process.stdout:
                log_file.write(line)
                step = re.search(r'(Epoch|Iter)\((train|test)\).*', line)
                if step and time.monotonic() - shown > 20:
                    shown = time.monotonic()
                    _say(f'{title}: {step[0][:90].rstrip()}')
    # wait4 tells the memory of this child alone; psutil and the like would have to poll.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise DemoError(f'{" ".join(command)} failed; its output is in {log}')
    return usage.ru_maxrss / 1024


def _say(line: str) -> None:
    """Print a line in one piece: several threads may print at once."""
    sys.stdout.write(line + '\n')
    sys.stdout.flush()


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def _read_losses(scalars: Path) -> list[tuple[int, float]]:
    records = map(json.loads, scalars.read_text().splitlines())
    return [(record['step'], record['loss']) for record in records if 'loss' in record]


def explain_miss(result: Result, out: Path) -> str:
    """Say by how much a model missed its target, and where the reason may be seen."""
    column, least = result.job.target
    return (
        f'error: {result.job.name} reached {column} {result.scores[column]:.3f}, below {least}. '
        f'Look at {out / "losses.png"} (does its loss fall?), '
        f'{out / result.job.name / "train.log"} (warnings, learning rate) and '
        f'{out / f"{result.job.name}.png"} (what it predicts). If all of them look sound, run '
        f'again with another seed: python -m demo --only {result.job.name} --seed 1'
    )


def format_table(results: Sequence[Result]) -> str:
    """Lay results out as a Markdown table; a score below its target is marked."""
    lines = [
        f'| model | {" | ".join(COLUMNS)} | time | peak memory |',
        f'|---|{"---|" * len(COLUMNS)}---|---|',
    ]
    for result in results:
        cells = []
        for column in COLUMNS:
            cell = f'{result.scores[column]:.3f}' if column in result.scores else ''
            if column == result.job.target[0] and not result.has_learned:
                cell += f' (below {result.job.target[1]})'
            cells.append(cell)
        lines.append(
            f'| {result.job.name} | {" | ".join(cells)} | {result.seconds / 60:.1f} min '
            f'| {result.peak_memory:.0f} MiB |'
        )
    return '\n'.join(lines)


def draw_contact_sheet(job: Job, pictures: Path, out: Path) -> None:
    """Put some of the toolkit's pictures of one model on one page.

    Args:
        job: The model, for the title.
        pictures: Folder with the pictures.
        out: PNG to write.
    """
    import matplotlib.pyplot as plt

    files = sorted(path for path in pictures.rglob('*') if path.suffix in ('.jpg', '.png'))
    chosen = files[:: max(len(files) // NUM_PICTURES, 1)][:NUM_PICTURES]
    figure, axes = plt.subplots(2, NUM_PICTURES // 2, figsize=(15, 5.5), layout='constrained')
    is_pair = 'top-1' not in job.metrics  # of classified images only the one with its labels
    figure.suptitle(job.name + (': ground truth left, prediction right' if is_pair else ''))
    for axis, file in zip(axes.flat, chosen, strict=False):
        axis.imshow(plt.imread(file))
        axis.set_title(file.stem, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(out, dpi=100)
    plt.close(figure)


def draw_losses(results: Sequence[Result], out: Path) -> None:
    """Draw the loss of each model over its iterations.

    Args:
        results: The models.
        out: PNG to write.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results), 3.5), layout='constrained', squeeze=False
    )
    for axis, result in zip(axes.flat, results, strict=True):
        axis.plot(*zip(*result.losses, strict=True))
        axis.set(title=result.job.name, xlabel='iteration', ylabel='training loss', ylim=0)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=100)
    plt.close(figure)
