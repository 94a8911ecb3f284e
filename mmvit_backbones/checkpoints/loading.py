"""Load weights of any source into a model, strictly: detect, rename, match, load, report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.checkpoints.converting import Weights, describe, read_weights
from mmvit_backbones.checkpoints.description import HEAD, PREFIX, Network
from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.networks import find_backbone, is_described, network_of
from mmvit_backbones.checkpoints.reading import read_checkpoint
from mmvit_backbones.checkpoints.rules import StateDict
from mmvit_backbones.checkpoints.values import check_values


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Attributes:
        dialect: The source whose names the weights had.
        loaded: Names of the model's parameters and buffers that were filled.
        missing: Those that the source does not have and that keep their values.
        unexpected: Our names of what the source has and the model does not.
        adapted: Those of `loaded` whose shape was changed on the way.
        notes: Why something is missing, unexpected or adapted.
    """

    dialect: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f'dialect {self.dialect}: loaded {len(self.loaded)} of '
            f'{len(self.loaded) + len(self.missing)} tensors of the model',
            f'  missing, left as they were: {some_of(self.missing)}',
            f'  unexpected, not loaded: {some_of(self.unexpected)}',
            f'  adapted to another shape: {some_of(self.adapted)}',
            *(f'  note: {note}' for note in self.notes),
        ]
        return '\n'.join(lines)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    dialect: str = 'auto',
    sha256: str | None = None,
) -> LoadReport:
    """Load weights of any public source into a backbone, a classifier, a detector or a segmentor.

    Strict: every parameter and buffer of the model is filled and everything in the source is used.
    The exceptions, each of which the report names: a head for another number of classes or that
    the source lacks, output norms and a pyramid that an ImageNet file lacks, parts that a backbone
    does not have (a classifier, the rest of a detector, stages behind the last one in use), and
    BatchNorm's count of batches in old files. A stem for another number of channels is adapted by
    timm's rule (not in variant `'vit-pytorch'`, whose stem has a norm over the values of a patch,
    for which there is no rule); a learned position for another grid is interpolated.

    Args:
        model: A model that is or holds one backbone of this package.
        source: A name of `list_pretrained()`, a `.pth` or `.safetensors` file, its address,
            `hf-hub:<owner>/<name>`, or a state dict.
        dialect: `'official'`, `'timm'`, `'mmpretrain'`, `'mmseg'`, `'vit-pytorch'` or `'ours'`;
            `'auto'` tells it by the keys.
        sha256: Expected SHA-256 of the file, or the first digits of it.

    Raises:
        FileNotFoundError: If there is no such file or name.
        ValueError: If the dialect is not known, the model holds no backbone of ours, the download
            fails, the file is refused or damaged, or the weights do not fit. Nothing has been
            loaded then.
    """
    prefix, backbone = find_backbone(model, is_described, 'backbone of this package')
    network = network_of(backbone)
    named = None if dialect == 'auto' else (network, network.dialect(dialect))
    weights = read_weights(read_checkpoint(source, sha256), named)
    target: StateDict = dict(model.state_dict())
    match = _match(weights, target, prefix, network)
    _check(match, weights, prefix, backbone, len(target))
    notes = check_values(match.loaded, target)
    model.load_state_dict({**target, **match.loaded}, strict=True)
    unused = ['the source holds an ImageNet head, which it does not use'] if weights.unused else []
    reasons = [
        *notes,
        *match.adapted.values(),
        *match.missing.values(),
        *match.unexpected.values(),
        *unused,
    ]
    return LoadReport(
        dialect=weights.dialect.name,
        loaded=tuple(name for name in target if name in match.loaded),
        missing=tuple(match.missing),
        unexpected=(*match.unexpected, *weights.unused),
        adapted=tuple(match.adapted),
        notes=tuple(dict.fromkeys(reasons)),
    )


@dataclass
class _Match:
    """Which tensor goes where.

    Attributes:
        loaded: The model's names -> weights.
        missing: The model's names that get none -> why they may.
        unexpected: Names of weights that have no place -> why they may.
        adapted: Names in `loaded` whose shape was changed -> how.
        problems: What must not be -> names.
    """

    loaded: StateDict = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, reason: str | None) -> None:
        """Add a name to `missing` or `unexpected` if there is a reason, else to the problems."""
        if reason is None:
            self.problems.setdefault(kind, []).append(name)
        else:
            getattr(self, kind)[name] = reason


def _match(weights: Weights, target: StateDict, prefix: str, network: Network) -> _Match:
    """Find a place for every tensor, or the reason or the error that it has none.

    Args:
        weights: Weights under our names.
        target: The model's tensors.
        prefix: Start of the backbone's names in the model.
        network: Description of the model's backbone.
    """
    match = _Match()
    root = prefix.removesuffix(PREFIX)
    for key, value in {**weights.ours, **weights.others}.items():
        inside = key.removeprefix(PREFIX) if key not in weights.others else key
        is_backbone = inside != key
        name = (prefix if is_backbone else root) + inside
        # A bare backbone has no parameters for the neck and head.
        current = target.get(name) if is_backbone or prefix else None
        adapt = network.adapters.get(inside) if is_backbone else None
        if current is None:
            reason = _why_unexpected(inside, is_backbone, prefix, target, network)
            match.add('unexpected', name, reason)
        elif value.shape == current.shape:
            match.loaded[name] = value
        elif adapt and (adapted := adapt(value, current)):
            match.loaded[name], match.adapted[name] = adapted
        elif not is_backbone and _is_class_count(name, value, current):
            match.missing[name] = (
                f'another number of classes ({value.shape[0]} in the source, {current.shape[0]} in '
                'the model)'
            )
        else:
            shapes = f'{name} {tuple(value.shape)} -> {tuple(current.shape)}'
            match.add('other shapes (source -> model)', shapes, None)
    for name in target:
        if name not in match.loaded and name not in match.missing:
            match.add('missing', name, _why_missing(name, prefix, weights, network))
    return match


def _is_class_count(name: str, value: Tensor, current: Tensor) -> bool:
    """Whether a head's tensors differ in nothing but the number of rows."""
    in_head = any(part.endswith('head') for part in name.split('.'))
    return in_head and value.ndim > 0 and value.shape[1:] == current.shape[1:]


def _why_unexpected(
    inside: str, is_backbone: bool, prefix: str, target: StateDict, network: Network
) -> str | None:
    """Say why weights may be left over; None if they may not."""
    if not is_backbone:
        if not prefix:
            return 'a backbone has no parameters for the neck and head of the source'
        head = prefix.removesuffix(PREFIX) + HEAD
        has_head = any(key.startswith(head) for key in target)
        is_head = inside.startswith(HEAD) and not has_head
        return 'the model is a classifier without a head' if is_head else None
    built = [key.removeprefix(prefix) for key in target if key.startswith(prefix)]
    for part in network.optional_parts:
        if part.covers(inside) and not any(map(part.covers, built)):
            return part.unexpected
    stack, *rest = inside.split('.')
    if stack in network.stacks:
        numbers = [int(key.split('.')[1]) for key in built if key.startswith(f'{stack}.')]
        if int(rest[0]) > max(numbers, default=0):
            return 'the model ends before the last stage or block of its architecture'
    return None


def _why_missing(name: str, prefix: str, weights: Weights, network: Network) -> str | None:
    """Say why the model may keep a value; None if it may not."""
    if name.startswith(prefix):
        inside = name.removeprefix(prefix)
        given = [key.removeprefix(PREFIX) for key in weights.ours if key.startswith(PREFIX)]
        for part in network.optional_parts:
            if part.covers(inside) and not any(map(part.covers, given)):
                return part.missing
    is_head = name.startswith(prefix.removesuffix(PREFIX) + HEAD)
    if is_head and prefix and not any(key.startswith(HEAD) for key in weights.ours):
        return None if weights.is_whole else 'the source has no head'
    return None


def _check(match: _Match, weights: Weights, prefix: str, backbone: Backbone, total: int) -> None:
    """Raise CheckpointError if something does not fit."""
    network = network_of(backbone)
    expected = network.signature_of_model(backbone)
    built = network.signature_of_weights(
        {PREFIX + key: value for key, value in backbone.state_dict().items()}
    )
    found = weights.signature
    is_other = not (found.matches(expected) or found.matches(built))
    if not (is_other or match.problems):
        return
    problems = []
    if is_other:
        problems.append(f'the weights are {describe(found)}, the model is {describe(expected)}')
    problems.append(f'{len(match.loaded)} of {total} tensors of the model would be loaded')
    problems += [f'{kind} {some_of(names)}' for kind, names in match.problems.items()]
    only_backbone = all(name.startswith(prefix) for name in match.loaded)
    missing = match.problems.get('missing', [])
    if only_backbone and not all(name.startswith(prefix) for name in missing):
        problems.append('to fill the backbone of a model alone, load into `model.backbone`')
    raise CheckpointError(f'weights do not fit ({weights.dialect.name}): {"; ".join(problems)}')
