"""Convert weights from any source's names to any other's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmvit_backbones.backbones.base import resolve_arch
from mmvit_backbones.checkpoints.description import (
    DIALECTS,
    PREFIX,
    Dialect,
    Network,
    Signature,
)
from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.networks import NETWORKS, network_of_model
from mmvit_backbones.checkpoints.reading import unwrap
from mmvit_backbones.checkpoints.rules import StateDict


@dataclass(frozen=True)
class Weights:
    """Weights under our names.

    Attributes:
        network: Which network they belong to.
        dialect: Where they come from.
        ours: Weights of a classifier: `backbone.`, `neck.`, `head.fc.`.
        others: What else a detector or segmentor holds, under its names.
        is_whole: Whether they come from a detector or segmentor.
        unused: Our names of what the source holds without using it: the backbones in the authors'
            detectors keep an ImageNet head.
    """

    network: Network
    dialect: Dialect
    ours: StateDict
    others: StateDict
    is_whole: bool
    unused: tuple[str, ...] = ()

    @property
    def signature(self) -> Signature:
        """What the weights show of their architecture."""
        return self.network.signature_of_weights(self.ours)


def read_weights(
    state_dict: Mapping[str, Tensor], source: tuple[Network, Dialect] | None = None
) -> Weights:
    """Give weights of any source our names.

    Args:
        state_dict: Unwrapped weights of a backbone, a classifier, a detector or a segmentor.
        source: Where they come from; None to tell it by the keys.

    Raises:
        CheckpointError: If no source or several match, or a key is not known.
    """
    inside = {k.removeprefix(PREFIX): v for k, v in state_dict.items() if k.startswith(PREFIX)}
    outside = {k: v for k, v in state_dict.items() if not k.startswith(PREFIX)}
    has_prefix = bool(inside)
    if not has_prefix:
        inside, outside = outside, {}
    network, dialect = source or _detect(inside)
    is_classifier = bool(outside) and all(key.startswith(dialect.head_prefixes) for key in outside)
    if is_classifier or not has_prefix:
        return Weights(network, dialect, dialect.read({**inside, **outside}), {}, is_whole=False)
    ours = dialect.read(inside)
    backbone = {key: value for key, value in ours.items() if key.startswith(PREFIX)}
    unused = tuple(key for key in ours if key not in backbone)
    return Weights(network, dialect, backbone, outside, is_whole=True, unused=unused)


def _detect(weights: Mapping[str, Tensor]) -> tuple[Network, Dialect]:
    known = [(network, dialect) for network in NETWORKS.values() for dialect in network.dialects]
    hits = [(network, dialect) for network, dialect in known if dialect.matches(weights)]
    if len(hits) == 1:
        return hits[0]
    problem = 'matches several sources' if hits else 'matches no source'
    looked_for = '; '.join(
        f'{dialect.name} {network.name}: {", ".join(dialect.required)}'
        for network, dialect in hits or known
        if dialect.required
    )
    raise CheckpointError(
        f'the state dict {problem}; its keys are {some_of(weights)}; looked for {looked_for}'
    )


def _write_weights(weights: Weights, dialect: Dialect) -> StateDict:
    variant = weights.signature.settings['variant']
    if dialect.variant not in (None, variant):
        raise CheckpointError(
            f'weights of variant {variant!r} cannot be converted to {dialect.name!r}, which has '
            'another structure'
        )
    theirs = dialect.write(weights.ours)
    is_classifier = (
        any(key.startswith(dialect.head_prefixes) for key in theirs) and not weights.is_whole
    )
    if not (is_classifier or weights.is_whole):
        return theirs
    head_prefixes = dialect.head_prefixes if is_classifier else ()
    named = {k if k.startswith(head_prefixes) else PREFIX + k: v for k, v in theirs.items()}
    return {**named, **weights.others}


@dataclass(frozen=True)
class Conversion:
    """Converted weights and what was done.

    Attributes:
        state_dict: The weights under their new names.
        arch: Which architecture they have.
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


def convert(state_dict: Mapping[str, Tensor], arch: Any = None, to: str = 'ours') -> Conversion:
    """Convert weights and report on it; see `convert_state_dict`.

    Args:
        state_dict: The weights.
        arch: The architecture that they must have; None to accept any.
        to: The dialect to convert to.
    """
    if to not in DIALECTS:
        raise ValueError(f'to must be one of {DIALECTS}, got {to!r}')
    expected = None if arch is None else signature_of(arch)
    weights = read_weights(unwrap(state_dict))
    found = weights.signature
    if expected is not None and not found.matches(expected):
        raise CheckpointError(
            f'arch is {describe(expected)}, but the weights are {describe(found)}'
        )
    target = weights.network.dialect(to)
    converted = _write_weights(weights, target)
    kept = read_weights(converted, (weights.network, target)).ours
    dropped = (*weights.unused, *(key for key in weights.ours if key not in kept))
    return Conversion(converted, describe(found), weights.dialect.name, to, dropped)


def convert_state_dict(state_dict: Mapping[str, Tensor], arch: Any, to: str = 'timm') -> StateDict:
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
            (its variant only) or `'ours'`.

    Raises:
        ValueError: If an argument is not known, the weights match no or several sources or belong
            to another architecture, or the target lacks the network or its variant.
    """
    return convert(state_dict, arch, to).state_dict


def signature_of(arch: Any) -> Signature:
    """Return what weights of an architecture show.

    Args:
        arch: A model's name or an architecture.

    Raises:
        ValueError: If it is a name that is not known.
        TypeError: If it is neither a name nor an architecture.
    """
    if isinstance(arch, str):
        network = network_of_model(arch)
        if network is None:
            raise ValueError(f'arch must be one of {sorted(_named_signatures())}, got {arch!r}')
        return _named_signatures()[arch]
    for network in NETWORKS.values():
        if isinstance(arch, type(next(iter(network.archs.values())))):
            return network.signature(arch)
    raise TypeError(f'arch must be the name of a model or an architecture, got {type(arch)}')


def describe(signature: Signature) -> str:
    """Return the name of the model with a signature, or its settings if no model has it."""
    for name, known in _named_signatures().items():
        if signature == known:
            return name
    return str(signature)


def _named_signatures() -> dict[str, Signature]:
    named = {}
    for network in NETWORKS.values():
        for name, options in network.models.items():
            arch = resolve_arch(options['arch'], network.archs)
            named[name] = network.signature(**{**options, 'arch': arch})
        for name, build in network.free_models.items():
            # Its sizes are the user's choice, so only the variant is known.
            settings = dict.fromkeys((*network.arch_settings, *network.options))
            settings['variant'] = build()['arch'].variant
            named[name] = Signature(network.name, settings)
    return named
