"""Random numbers that a resumed run draws as the uninterrupted one would have.

Two kinds are told apart. What the model draws, such as stochastic depth, comes from the global
generators of a process; their states are saved with each checkpoint and set when a run goes on.
What the data pipeline draws, such as flips and crops, is drawn in workers that a checkpoint cannot
look into; so each image gets a seed of its own from the run's seed, rank, epoch and place. Then it
does not matter how many workers there are, since when they run, or what was loaded before.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, get_worker_info

KEY = 'random_states'  # in a checkpoint


def get_states() -> dict[str, Any]:
    """Return the states of this process's global generators, as tensors and plain data."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()
    name, array, *rest = state
    states = {
        'python': (version, torch.tensor(numbers), gauss),
        'numpy': (str(name), torch.from_numpy(array.astype(np.int64)), *rest),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = {torch.cuda.current_device(): torch.cuda.get_rng_state()}
        if torch.distributed.is_available() and not torch.distributed.is_initialized():
            states['cuda'] = dict(enumerate(torch.cuda.get_rng_state_all()))
    return states


def set_states(states: dict[str, Any]) -> None:
    """Set what `get_states` returned."""
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, array, *rest = states['numpy']
    np.random.set_state((name, array.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'].cpu())
    for device, state in states.get('cuda', {}).items():
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(state.cpu(), device)


class SeededBatch(list):
    """Indices of one batch, which seed the generators of the process that loads each of them.

    Reading the list is what loads the batch: `[dataset[index] for index in batch]`, in a worker or
    in the main process, whose own states are put back afterwards.

    Args:
        indices: The batch.
        entropy: Numbers that no other batch of the run has.
    """

    def __init__(self, indices: Iterable[int], entropy: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.entropy = entropy

    def __iter__(self) -> Iterator[int]:
        in_worker = get_worker_info() is not None
        states = None if in_worker else (random.getstate(), np.random.get_state())
        torch_state = None if in_worker else torch.get_rng_state()
        try:
            for place, index in enumerate(super().__iter__()):
                seed = np.random.SeedSequence((*self.entropy, place)).generate_state(3)
                random.seed(int(seed[0]))
                np.random.seed(int(seed[1]))
                # Not torch.manual_seed, which would seed all devices too.
                torch.default_generator.manual_seed(int(seed[2]))
                yield index
        finally:
            if states is not None and torch_state is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(torch_state)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by iterating, as lists are pickled: that would seed the sending process.
        return SeededBatch, (tuple(self[:]), self.entropy)


class SeededBatches:
    """A batch sampler around another one: marks each batch, and skips those already trained on.

    Args:
        batches: The batch sampler.
        seed: The run's seed.
        epoch: Number of passes over the data before this one.
        skip: Batches to leave out at the start.
    """

    def __init__(self, batches: Any, seed: int, epoch: int = 0, skip: int = 0) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = epoch
        self.skip = skip

    def __iter__(self) -> Iterator[SeededBatch]:
        epoch = self.epoch
        self.epoch += 1
        for number, batch in enumerate(self.batches):
            if self.skip > 0:
                self.skip -= 1
                continue
            yield SeededBatch(batch, (self.seed, get_rank(), epoch, number))

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self.batches, name)


class ResumedIterator:
    """Batches without end for MMEngine's `IterBasedTrainLoop`, whose own would load what it skips.

    Args:
        loader: The data.
        num_calls: Calls that the loop makes only to get past what was trained on, as MMEngine
            before 0.10.8 does; they return None.
    """

    def __init__(self, loader: DataLoader, num_calls: int) -> None:
        self.loader = loader
        self.num_calls = num_calls
        self.epoch = 0
        self.iterator: Iterator[Any] | None = None

    def __iter__(self) -> ResumedIterator:
        return self

    def __next__(self) -> Any:
        if self.num_calls > 0:
            self.num_calls -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.loader)
        while True:
            try:
                return next(self.iterator)
            except StopIteration:
                self.epoch += 1
                sampler = getattr(self.loader.batch_sampler, 'sampler', None)
                if sampler is not None and hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch(self.epoch)
                self.iterator = iter(self.loader)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the batch sampler skips."""


class RandomStates:
    """The random states of one run: gathered, saved, and set when the run goes on."""

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None
        self.before_val: list[dict[str, Any]] | None = None

    def gather(self) -> list[dict[str, Any]]:
        """Return the states of all ranks; each rank must call it."""
        if self.before_val is not None:
            return self.before_val
        states: list[dict[str, Any]] = all_gather_object(get_states())
        return states

    def enter_val(self) -> None:
        """Note the states, since a resumed run does not repeat the validation."""
        self.before_val = self.gather()

    def leave_val(self) -> None:
        """Go on as if there had been no validation."""
        if self.before_val is not None:
            set_states(self.before_val[get_rank()])
            self.before_val = None

    def start(self, runner: Runner) -> None:
        """Seed the data, and set the states of a run that goes on."""
        loop = runner.train_loop
        loader = loop.dataloader
        batches = getattr(loader, 'batch_sampler', None)
        is_known = type(loop) in (EpochBasedTrainLoop, IterBasedTrainLoop)
        if isinstance(batches, SeededBatches):
            batches = batches.batches
        if is_known and batches is not None:
            seed = runner.seed if runner.seed is not None else 0
            if self.resumed is not None and hasattr(batches.sampler, 'seed'):
                # The sampler was built before the checkpoint, which knows the seed, was read.
                batches.sampler.seed = self.resumed['sampler_seed']
            by_epoch = type(loop) is EpochBasedTrainLoop
            batches = SeededBatches(
                batches,
                seed,
                epoch=loop.epoch if by_epoch else 0,
                skip=0 if by_epoch else loop.iter,
            )
            vars(loader)['batch_sampler'] = batches  # DataLoader forbids it by setattr
            # Else each pass over the data would draw a number from the global generator.
            loader.generator = torch.Generator().manual_seed(seed)
            if not by_epoch:
                vars(loader)['_iterator'] = None  # workers that know the old batch sampler
                advances = hasattr(loop.dataloader_iterator, 'skip_iter')
                loop.dataloader_iterator = ResumedIterator(loader, 0 if advances else loop.iter)
        if self.resumed is not None and get_rank() < len(self.resumed['ranks']):
            set_states(self.resumed['ranks'][get_rank()])

    def save(self, runner: Runner, checkpoint: dict[str, Any], ranks: list[Any]) -> None:
        """Put the states into a checkpoint."""
        batches = getattr(runner.train_loop.dataloader, 'batch_sampler', None)
        seed = getattr(getattr(batches, 'sampler', None), 'seed', None)
        checkpoint[KEY] = {'ranks': ranks, 'sampler_seed': seed}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the states out of a checkpoint."""
        self.resumed = checkpoint.get(KEY)
