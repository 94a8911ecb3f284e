"""Rename the keys of a state dict by a table that reads both ways.

A rule is a pair of patterns, theirs and ours. `#` stands for a number and `*`, at the end, for the
last part of a name (`weight`, `running_mean`, ...); both sides have them in the same order. A rule
without one side drops the key on the way to that side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mmvit_backbones.checkpoints.errors import CheckpointError, some_of

StateDict = dict[str, Tensor]
Rule = tuple[str | None, str | None]

_WILDCARDS = re.compile(r'[#*]')


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> Iterator[Rule]:
    """Put a prefix before both sides of each rule."""
    for their_side, our_side in rules:
        yield (
            None if their_side is None else theirs + their_side,
            None if our_side is None else ours + our_side,
        )


def rename(state_dict: Mapping[str, Tensor], rules: Iterable[Rule], to_ours: bool) -> StateDict:
    """Rename every key by the one rule that matches it in full.

    Args:
        state_dict: Weights under the names of one side.
        rules: The table.
        to_ours: Read the table from theirs to ours, else the other way.

    Raises:
        CheckpointError: If a key has no rule or more than one, or two keys get the same name.
    """
    sided = [rule if to_ours else (rule[1], rule[0]) for rule in rules]
    table = [(_compile(source), target) for source, target in sided if source is not None]
    renamed: StateDict = {}
    origin: dict[str, str] = {}
    unmatched = []
    for key, value in state_dict.items():
        hits = [(match, target) for regex, target in table if (match := regex.fullmatch(key))]
        if not hits:
            unmatched.append(key)
            continue
        if len(hits) > 1:
            patterns = [match.re.pattern for match, _ in hits]
            raise CheckpointError(f'key {key!r} has more than one rule: {patterns}')
        match, target = hits[0]
        if target is None:
            continue
        new_key = _fill(target, match.groups())
        if new_key in renamed:
            raise CheckpointError(f'keys {origin[new_key]!r} and {key!r} both become {new_key!r}')
        renamed[new_key] = value
        origin[new_key] = key
    if unmatched:
        raise CheckpointError(
            f'no rule for {len(unmatched)} of {len(state_dict)} keys: {some_of(unmatched)}'
        )
    return renamed


def _compile(pattern: str) -> re.Pattern[str]:
    regex = re.escape(pattern).replace(r'\#', r'(\d+)').replace(r'\*', r'([a-z_]+)')
    return re.compile(regex)


def _fill(target: str, values: Sequence[str]) -> str:
    remaining = iter(values)
    return _WILDCARDS.sub(lambda _: next(remaining), target)


def join(state_dict: StateDict, owner: str, parts: Sequence[str], whole: str) -> StateDict:
    """Stack the rows of layers into one layer, such as q, k and v into qkv.

    Args:
        state_dict: Weights.
        owner: Regular expression of the module that owns the layers.
        parts: Names of the layers, in the order of their rows.
        whole: Name of the joined layer.

    Raises:
        CheckpointError: If one of the parts is not there.
    """
    regex = re.compile(rf'({owner})\.{parts[0]}\.(weight|bias)')
    joined = dict(state_dict)
    for key in state_dict:
        if match := regex.fullmatch(key):
            names = [f'{match[1]}.{part}.{match[2]}' for part in parts]
            missing = [name for name in names if name not in joined]
            if missing:
                raise CheckpointError(f'{key!r} is there, but not {", ".join(missing)}')
            joined[f'{match[1]}.{whole}.{match[2]}'] = torch.cat([joined.pop(n) for n in names])
    return joined


def split(state_dict: StateDict, owner: str, whole: str, parts: Mapping[str, int]) -> StateDict:
    """Cut the rows of a layer into several layers; undoes `join`.

    Args:
        state_dict: Weights.
        owner: Regular expression of the module that owns the layer.
        whole: Name of the layer.
        parts: Names of the new layers, in the order of their rows -> share of the rows.

    Raises:
        CheckpointError: If the rows cannot be shared out.
    """
    regex = re.compile(rf'({owner})\.{whole}\.(weight|bias)')
    cut = dict(state_dict)
    for key, value in state_dict.items():
        if match := regex.fullmatch(key):
            unit, rest = divmod(value.shape[0], sum(parts.values()))
            if rest:
                raise CheckpointError(
                    f'{key!r} has {value.shape[0]} rows, not a multiple of {sum(parts.values())}'
                )
            pieces = value.split([unit * share for share in parts.values()])
            for part, piece in zip(parts, pieces, strict=True):
                # A copy: pieces that share memory could not be saved as .safetensors.
                cut[f'{match[1]}.{part}.{match[2]}'] = piece.clone()
            del cut[key]
    return cut


def reshape(state_dict: StateDict, pattern: str, shape: Sequence[int]) -> StateDict:
    """View the tensors whose key matches `pattern` in full as `shape`; -1 once, 0 keeps a side."""
    regex = re.compile(pattern)
    return {
        key: value.reshape([value.shape[i] if n == 0 else n for i, n in enumerate(shape)])
        if regex.fullmatch(key)
        else value
        for key, value in state_dict.items()
    }
