"""Convert weights from any source's names to any other's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmvit_backbones.checkpoints.archs import Arch, looks_of_arch, looks_of_weights
from mmvit_backbones.checkpoints.dialects import (
    NAMES,
    Dialect,
    find_dialect,
    read_weights,
    write_weights,
)
from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.reading import unwrap
from mmvit_backbones.checkpoints.rules import StateDict


@dataclass(frozen=True)
class Conversion:
    """Converted weights and what was done.

    Attributes:
        state_dict: The weights under their new names.
        arch: Which architecture they look like.
        source: Dialect they came in.
        target: Dialect they are in.
        dropped: Our names of what the target has no place for.
    """

    state_dict: StateDict
    arch: str
    source: str
    target: str
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f'{self.arch}: {len(self.state_dict)} tensors from {self.source} to {self.target}, '
            f'dropped {some_of(self.dropped)}'
        )


def convert(
    state_dict: Mapping[str, Tensor], arch: str | Arch | None = None, to: str = 'ours'
) -> Conversion:
    """Convert weights and report on it; see `convert_state_dict`.

    Args:
        state_dict: The weights.
        arch: The architecture that they must have; None to accept any.
        to: The dialect to convert to.
    """
    if to not in NAMES:
        raise ValueError(f'to must be one of {NAMES}, got {to!r}')
    expected = None if arch is None else looks_of_arch(arch)
    weights = read_weights(unwrap(state_dict))
    network = weights.dialect.network
    looks = looks_of_weights(weights.ours, network)
    if expected is not None and not expected.fits(looks):
        raise CheckpointError(f'arch is {expected}, but the weights look like {looks}')
    target: Dialect = find_dialect(to, network)
    converted = write_weights(weights, target)
    kept = read_weights(converted, target).ours
    dropped = (*weights.unused, *(key for key in weights.ours if key not in kept))
    return Conversion(converted, str(looks), weights.dialect.name, to, dropped)


def convert_state_dict(
    state_dict: Mapping[str, Tensor], arch: str | Arch, to: str = 'timm'
) -> StateDict:
    """Give weights the names and shapes of another source.

    The source they come from is told by their keys. Weights of a backbone, a classifier and a
    whole detector or segmentor stay what they are; of the last, only what stands under `backbone.`
    changes. There and back is bit-exact, but for the temperature of vit-pytorch's XCiT, which is
    stored as its logarithm, and for what the target has no place for, which is dropped:
    mmsegmentation has no classifier, timm and vit-pytorch no output norms, and only the authors and
    we the pyramid of XCiT.

    Args:
        state_dict: The weights, also inside `model` or `state_dict`.
        arch: One of `list_models()`, a `TwinsSVTArch` or an `XCiTArch`.
        to: `'official'`, `'timm'`, `'mmpretrain'`, `'mmseg'` (Twins-SVT only), `'vit-pytorch'`
            (its structure only) or `'ours'`.

    Raises:
        ValueError: If an argument is not known, the weights match no or several sources or belong
            to another architecture, or the target lacks the network or its structure.
    """
    return convert(state_dict, arch, to).state_dict
