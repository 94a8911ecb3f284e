"""Load weights of any source into a model, strictly."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.checkpoints.archs import looks_of_model, looks_of_weights
from mmvit_backbones.checkpoints.dialects import PREFIX, Weights, find_dialect, read_weights
from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.reading import read_checkpoint
from mmvit_backbones.checkpoints.rules import StateDict
from mmvit_backbones.layers.precision import at_least_float32


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Attributes:
        dialect: The source whose names the weights had.
        loaded: Names of the model's parameters and buffers that were filled.
        missing: Those that the source does not have and that keep their values.
        unexpected: Our names of what the source has and the model does not.
        notes: Why something is missing, unexpected or changed on the way.
    """

    dialect: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f'dialect {self.dialect}: loaded {len(self.loaded)} of '
            f'{len(self.loaded) + len(self.missing)} tensors of the model',
            f'  missing, left as they were: {some_of(self.missing)}',
            f'  unexpected, not loaded: {some_of(self.unexpected)}',
            *(f'  note: {note}' for note in self.notes),
        ]
        return '\n'.join(lines)


@dataclass
class _Plan:
    """What goes where, in the making."""

    loaded: StateDict = field(default_factory=dict)
    unexpected: dict[str, str] = field(
        default_factory=dict
    )  # name -> reason, or '' if there is none
    missing: dict[str, str] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    dialect: str = 'auto',
    sha256: str | None = None,
) -> LoadReport:
    """Load weights of any public source into a backbone, a classifier, a detector or a segmentor.

    Strict: every parameter and buffer of the model is filled and everything in the source is used.
    The exceptions, each of which the report names: a head for another number of classes, output
    norms and a pyramid that an ImageNet file lacks, parts that a backbone does not have (a
    classifier, the rest of a detector, stages behind the last one in use), and BatchNorm's count
    of batches in old files. A learned position for another grid is interpolated.

    Args:
        model: A model that is or holds one `TwinsSVT` or `XCiT`.
        source: A `.pth` or `.safetensors` file, its URL, or a state dict.
        dialect: `'official'`, `'timm'`, `'mmpretrain'`, `'mmseg'`, `'vit-pytorch'` or `'ours'`;
            `'auto'` tells it by the keys.
        sha256: Expected SHA-256 of the file, or the first digits of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the dialect is not known, the model holds no backbone of ours, the file is
            refused or damaged, or the weights do not fit. Nothing has been loaded then.
    """
    prefix, backbone = find_backbone(model)
    expected = looks_of_model(backbone)
    named = None if dialect == 'auto' else find_dialect(dialect, expected.network)
    weights = read_weights(read_checkpoint(source, sha256), named)
    target: StateDict = dict(model.state_dict())
    plan = _make_plan(weights, target, prefix)
    _check(plan, weights, prefix, backbone, len(target))
    model.load_state_dict({**target, **plan.loaded}, strict=True)
    reasons = {**plan.missing, **plan.unexpected}.values()
    return LoadReport(
        dialect=named.name if named else weights.dialect.name,
        loaded=tuple(name for name in target if name in plan.loaded),
        missing=tuple(plan.missing),
        unexpected=(*plan.unexpected, *weights.unused),
        notes=tuple(dict.fromkeys([*plan.notes, *reasons, *_notes_on_unused(weights)])),
    )


def _notes_on_unused(weights: Weights) -> list[str]:
    return ["the source's backbone holds an ImageNet head, which it does not use"] * bool(
        weights.unused
    )


def find_backbone(model: nn.Module) -> tuple[str, Backbone]:
    """Return the prefix of a model's backbone in its state dict, and the backbone.

    Raises:
        ValueError: If there is not exactly one.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Backbone)]
    if len(found) != 1:
        raise ValueError(
            f'model must hold exactly one TwinsSVT or XCiT, {type(model).__name__} holds '
            f'{some_of(name for name, _ in found)}'
        )
    name, backbone = found[0]
    return name + '.' if name else '', backbone


def _make_plan(weights: Weights, target: StateDict, prefix: str) -> _Plan:
    plan = _Plan()
    root = prefix.removesuffix(PREFIX)
    for key, value in {**weights.ours, **weights.others}.items():
        is_backbone = key.startswith(PREFIX) and key not in weights.others
        name = prefix + key.removeprefix(PREFIX) if is_backbone else root + key
        # A bare backbone has no place for what stands beside one.
        current = target.get(name) if is_backbone or prefix else None
        if current is None:
            plan.unexpected[name] = _why_unexpected(name, is_backbone, prefix, target)
        elif value.shape == current.shape:
            plan.loaded[name] = value
        elif not is_backbone and _is_class_count(name, value, current):
            plan.missing[name] = (
                f'another number of classes ({value.shape[0]} in the source, {current.shape[0]} in '
                'the model)'
            )
        elif name == f'{prefix}pos_embed.table' and value.shape[3] == current.shape[3]:
            plan.loaded[name] = _resize_table(value, current)
            plan.notes.append(
                f'position table interpolated from {tuple(value.shape[1:3])} to '
                f'{tuple(current.shape[1:3])}'
            )
        else:
            plan.misfits.append(f'{name} {tuple(value.shape)} -> {tuple(current.shape)}')
    inside = {key.removeprefix(PREFIX) for key in weights.ours}
    for name in target:
        if name not in plan.loaded and name not in plan.missing:
            plan.missing[name] = _why_missing(name, prefix, inside)
    return plan


def _is_class_count(name: str, value: Tensor, current: Tensor) -> bool:
    """Whether a head's tensors differ in nothing but the number of rows."""
    is_head = re.search(r'(^|[._])head\.', name) is not None
    return is_head and value.ndim > 0 and value.shape[1:] == current.shape[1:]


def _resize_table(value: Tensor, current: Tensor) -> Tensor:
    """Interpolate a position table (1, h, w, C) bicubically, as the model does for an image."""
    size = tuple(current.shape[1:3])
    table = at_least_float32(value).permute(0, 3, 1, 2)
    table = F.interpolate(table, size, mode='bicubic', align_corners=False)
    return table.permute(0, 2, 3, 1).to(value.dtype)


def _why_unexpected(name: str, is_backbone: bool, prefix: str, target: StateDict) -> str:
    """Say why something in the source may be left over; `''` if it may not."""
    inside = name.removeprefix(prefix)
    if not is_backbone:
        if not prefix:
            return 'a backbone does not have what stood beside it in the source'
        has_head = any(re.search(r'(^|\.)head\.fc\.', key) for key in target)
        is_head = re.search(r'(^|\.)head\.fc\.', name) is not None
        return 'the model is a classifier without a head' if is_head and not has_head else ''
    if inside.startswith('pyramid.') and f'{prefix}pyramid.fpn1.0.weight' not in target:
        return 'the model has no pyramid'
    if inside.startswith('norm_list.'):
        return 'the model does not norm all the maps that the source norms'
    if match := re.match(r'(patch_embeds|blocks|pos_block)\.(\d+)\.', inside):
        built = {
            int(found[1])
            for key in target
            if (found := re.match(rf'{re.escape(prefix + match[1])}\.(\d+)\.', key))
        }
        if int(match[2]) > max(built, default=0):
            return 'the model ends before the last stage or block of its architecture'
    return ''


def _why_missing(name: str, prefix: str, inside: set[str]) -> str:
    """Say why something of the model may be missing; `''` if it may not."""
    for part, reason in (
        ('norm_list.', 'the source has no output norms'),
        ('pyramid.', 'the source has no pyramid'),
    ):
        in_source = any(key.startswith(part) for key in inside)
        if name.startswith(prefix + part) and not in_source:
            return reason
    if name.endswith('.num_batches_tracked'):
        return "the source does not count BatchNorm's batches"
    return ''


def _check(plan: _Plan, weights: Weights, prefix: str, backbone: Backbone, num_target: int) -> None:
    """Raise CheckpointError if something does not fit."""
    expected = looks_of_model(backbone)
    looks = looks_of_weights(weights.ours, weights.dialect.network)
    built = looks_of_weights(
        {PREFIX + key: value for key, value in backbone.state_dict().items()}, expected.network
    )
    missing = [name for name, reason in plan.missing.items() if not reason]
    unexpected = [name for name, reason in plan.unexpected.items() if not reason]
    is_other = not (looks.fits(expected) or looks.fits(built))
    if not (is_other or missing or unexpected or plan.misfits):
        return
    problems = []
    if is_other:
        problems.append(f'the weights look like {looks}, the model is {expected}')
    problems.append(f'{len(plan.loaded)} of {num_target} tensors of the model would be loaded')
    if missing:
        problems.append(f'missing {some_of(missing)}')
    if unexpected:
        problems.append(f'left over {some_of(unexpected)}')
    if plan.misfits:
        problems.append(f'other shapes (source -> model) {some_of(plan.misfits)}')
    only_backbone = all(name.startswith(prefix) for name in plan.loaded)
    if only_backbone and any(not name.startswith(prefix) for name in missing):
        problems.append('to fill the backbone of a model alone, load into `model.backbone`')
    raise CheckpointError(f'weights do not fit ({weights.dialect.name}): {"; ".join(problems)}')
