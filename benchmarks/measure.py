"""Time and memory of contenders that take turns, each in a process of its own.

A process each, because an allocator's habits and compiled code belong to a process, and because
some forms need variables that a process must start with. Only one computes at a time.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from itertools import accumulate
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # waits for the device

from benchmarks import forms, peers
from mmvit_backbones.complexity import count_multiply_adds
from mmvit_backbones.kernels import operators

WARM_UP = 2  # passes that do not count
MIN_TURNS = 3


class Contender(NamedTuple):
    """A subject (`ours` or a package) in a form."""

    subject: str
    form: str


@dataclass(frozen=True)
class Setting:
    """What contenders are measured at.

    Attributes:
        network: A name of `list_models`.
        height: Rows of the images in pixels.
        width: Columns of the images in pixels.
        batch: Images.
        run: `forward` (without gradients) or `train` (forward and backward).
    """

    network: str
    height: int
    width: int
    batch: int
    run: str

    def images(self, device: torch.device) -> torch.Tensor:
        """Return random images, the same each time."""
        shape = (self.batch, 3, self.height, self.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


@dataclass(frozen=True)
class Row(Setting):
    """A contender under a setting.

    Attributes:
        subject: `ours` or the package.
        form: Parts joined by `+`.
        precision: `fp32` or `half`.
        seconds: Median wall time of a pass.
        iqr: Distance of the quartiles of the wall times in seconds.
        fastest: Shortest wall time in seconds.
        turns: Passes that were timed.
        mebibytes: The most memory that a pass holds beyond what the process held before it; None
            where it cannot be measured.
        allocated: The same in MiB of what PyTorch allocates, which unlike the resident memory of a
            CPU's process is the same each time; None for exported forms.
        peak_share: Share of the rate of the faster matrix product, by ours' multiply-adds; in
            training three times those of the forward pass are counted.
    """

    subject: str
    form: str
    precision: str
    seconds: float
    iqr: float
    fastest: float
    turns: int
    mebibytes: float | None
    allocated: float | None
    peak_share: float

    def memory_beside(self, other: Row) -> tuple[float, float] | None:
        """Return both rows' memory in the better measure that both have; None if there is none."""
        for name in ('allocated', 'mebibytes'):
            pair = getattr(self, name), getattr(other, name)
            if None not in pair:
                return pair
        return None


def measure(
    setting: Setting,
    contenders: Sequence[Contender],
    device: torch.device,
    peak_rates: dict[str, float],
    seconds: float = 0.0,
) -> list[Row]:
    """Measure contenders under one setting, in turns; who fails is named and left out.

    Args:
        setting: What to measure.
        contenders: Who takes part.
        device: Where.
        peak_rates: Result of `matmul_rates`.
        seconds: Turns go on for so long, and for three turns at least.
    """
    with ExitStack() as stack:
        passes: dict[Contender, _Process] = {}
        memory: dict[Contender, Memory] = {}
        for contender in contenders:
            try:
                process = _Process(setting, contender, device)
                stack.callback(process.close)
                memory[contender] = Memory(*process.receive())
                passes[contender] = process
            except (RuntimeError, OSError) as error:
                print(f'{" ".join(contender)} is left out: {error}', flush=True)
        times: dict[Contender, list[float]] = {contender: [] for contender in passes}
        started, turns = timer(), 0
        while passes and (turns < MIN_TURNS or timer() - started < seconds):
            for contender, process in passes.items():
                times[contender].append(process.time())
            turns += 1
    model = peers.sizes_of(setting.network)
    work = setting.batch * count_multiply_adds(model, setting.height, setting.width)
    work *= 3 if setting.run == forms.TRAIN else 1
    rows = []
    for contender, spent in times.items():
        low, middle, high = quantiles(spent, n=4)
        precision = forms.precision(contender.form)
        share = work / middle / peak_rates[precision]
        found = (precision, middle, high - low, min(spent), turns, *memory[contender], share)
        values: tuple[Any, ...] = (*astuple(setting), *contender, *found)
        rows.append(Row(*values))
    return rows


class Memory(NamedTuple):
    """Memory of a pass in MiB; see the fields of `Row`."""

    mebibytes: float | None
    allocated: float | None


class _Process:
    """A contender that waits for its turns.

    Raises:
        OSError: If a library that the form preloads is missing.
    """

    def __init__(self, setting: Setting, contender: Contender, device: torch.device) -> None:
        variables = forms.environment(contender.form)
        # A server that has imported all forks those that need no variables: that saves seconds.
        context: Any = get_context('spawn' if variables or device.type == 'cuda' else 'forkserver')
        context.set_forkserver_preload([forms.__name__])
        self._pipe, other_end = context.Pipe()
        arguments = (other_end, setting, contender, device, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with patch.dict(os.environ, variables):
            self._process.start()
        other_end.close()

    def receive(self) -> Any:
        """Return what the process sends.

        Raises:
            RuntimeError: If it failed.
        """
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            answer = f'its process ended with {self._process.exitcode}'
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def time(self) -> float:
        """Make a pass; return its seconds."""
        self._pipe.send(True)
        return self.receive()

    def close(self) -> None:
        self._pipe.close()  # the process reads the end of it, and returns
        self._process.join()


def _serve(
    pipe: Connection, setting: Setting, contender: Contender, device: torch.device, threads: int
) -> None:
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        images = setting.images(device)
        run_pass = forms.build_pass(setting.network, *contender, setting.run, images)
        for _ in range(WARM_UP):
            run_pass()
        pipe.send(tuple(_peak_memory(run_pass, device, contender.form)))
        while pipe.recv():
            started = timer()
            run_pass()
            pipe.send(timer() - started)
    except EOFError:
        pass
    except Exception as error:
        pipe.send(f'{type(error).__name__}: {error}')


def _peak_memory(run_pass: Callable[[], object], device: torch.device, form: str) -> Memory:
    """Return the most memory that a pass holds beyond what was held before it."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run_pass()
        most = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        return Memory(most, most)
    is_exported = forms.parse_form(form) & {*forms.EXPORTED}
    return Memory(peak_resident(run_pass), None if is_exported else peak_allocated(run_pass))


def peak_resident(run_pass: Callable[[], object]) -> float | None:
    """Return by how many MiB a pass raises the resident size of this process at most.

    Linux lets a process reset the high-water mark; None elsewhere.
    """
    try:
        _release_free_memory()
        Path('/proc/self/clear_refs').write_text('5')
        before_kib = _read_status('VmRSS')
        run_pass()
        return (_read_status('VmHWM') - before_kib) / 2**10
    except OSError:
        return None


def peak_allocated(run_pass: Callable[[], object]) -> float:
    """Return how many MiB a pass allocates at most, by the allocations that the profiler sees."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_pass()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    changes = [(e['ts'], e['args']['Bytes']) for e in events if e['name'] == '[memory]']
    sums = accumulate(size for _, size in sorted(changes, key=lambda change: change[0]))
    return max(sums, default=0) / 2**20


def _release_free_memory() -> None:
    """Let the allocator of this process give all that it keeps back to the system."""
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, 'MallocExtension_ReleaseFreeMemory'):  # tcmalloc
        loaded.MallocExtension_ReleaseFreeMemory()
    elif hasattr(loaded, 'mallctl'):  # jemalloc: 4096 stands for all arenas
        loaded.mallctl(b'arena.4096.purge', None, None, None, ctypes.c_size_t(0))
    elif hasattr(loaded, 'malloc_trim'):  # glibc
        loaded.malloc_trim(0)


def _read_status(key: str) -> int:
    found = re.search(rf'^{key}:\s*(\d+)', Path('/proc/self/status').read_text(), re.M)
    if found is None:
        raise OSError(f'/proc/self/status has no {key}')
    return int(found[1])


def matmul_rates(device: torch.device, size: int | None = None) -> dict[str, float]:
    """Return multiply-adds a second of a square matrix product by precision.

    The faster library's, PyTorch's own or the one that `operators.mm` calls; medians of 9.

    Args:
        device: Where.
        size: Rows and columns; by default large enough for the device.
    """
    size = size or (8192 if device.type == 'cuda' else 2048)
    rates = {}
    for precision, dtype in ((forms.FP32, torch.float32), (forms.HALF, torch.bfloat16)):
        a = torch.randn(size, size, device=device).to(dtype)
        middle = []
        for multiply in (torch.mm, operators.mm):
            spent = []
            for _ in range(10):
                started = timer()
                multiply(a, a)
                spent.append(timer() - started)
            middle.append(median(spent[1:]))
        rates[precision] = size**3 / min(middle)
    return rates
