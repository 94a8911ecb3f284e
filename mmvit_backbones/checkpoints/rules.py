"""Rename the keys of a state dict by a table that reads both ways.

A rule is a pair of patterns, theirs and ours. `#` stands for a number and `*`, at the end, for the
last part of a name (`weight`, `running_mean`, ...); both sides have them in the same order. A rule
without one side drops the key on the way to that side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmvit_backbones.checkpoints.errors import CheckpointError, some_of

StateDict = dict[str, Tensor]
Rule = tuple[str | None, str | None]
Value = TypeVar('Value')

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
    return re.compile(_regex(pattern))


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r'\#', r'(\d+)').replace(r'\*', r'([a-z_]+)')


def _fill(target: str, values: Sequence[str]) -> str:
    remaining = iter(values)
    return _WILDCARDS.sub(lambda _: next(remaining), target)


def find(state_dict: Mapping[str, Value], pattern: str) -> dict[tuple[int, ...], Value]:
    """Return what stands under the keys of a pattern, by the numbers in the key, in their order."""
    regex = _compile(pattern)
    found = {
        tuple(map(int, match.groups())): value
        for key, value in state_dict.items()
        if (match := regex.fullmatch(key))
    }
    return dict(sorted(found.items()))


def matches(pattern: str, key: str) -> bool:
    """Whether a pattern matches a key in full."""
    return _compile(pattern).fullmatch(key) is not None


@dataclass(frozen=True)
class Step:
    """A change of tensors that renaming cannot express, and its inverse.

    Attributes:
        to_ours: From a source's tensors, already under our names, to ours.
        to_theirs: The way back.
    """

    to_ours: Callable[[StateDict], StateDict]
    to_theirs: Callable[[StateDict], StateDict]

    @property
    def inverse(self) -> Step:
        """The same change in the other direction."""
        return Step(self.to_theirs, self.to_ours)


def joined(owner: str, parts: Mapping[str, int], whole: str) -> Step:
    """Return the step that stacks the rows of layers into one layer, such as q, k, v into qkv.

    Args:
        owner: Pattern of the module that owns the layers.
        parts: Names of the layers, in the order of their rows -> share of the rows.
        whole: Name of the joined layer.
    """
    return Step(
        lambda weights: _join(weights, owner, tuple(parts), whole),
        lambda weights: _split(weights, owner, whole, parts),
    )


def _join(state_dict: StateDict, owner: str, parts: Sequence[str], whole: str) -> StateDict:
    regex = re.compile(rf'({_regex(owner)})\.{parts[0]}\.(weight|bias)')
    joined = dict(state_dict)
    for key in state_dict:
        if match := regex.fullmatch(key):
            module, kind = match[1], match.groups()[-1]
            names = [f'{module}.{part}.{kind}' for part in parts]
            missing = [name for name in names if name not in joined]
            if missing:
                raise CheckpointError(f'{key!r} is there, but not {", ".join(missing)}')
            joined[f'{module}.{whole}.{kind}'] = torch.cat([joined.pop(n) for n in names])
    return joined


def _split(state_dict: StateDict, owner: str, whole: str, parts: Mapping[str, int]) -> StateDict:
    regex = re.compile(rf'({_regex(owner)})\.{whole}\.(weight|bias)')
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
                cut[f'{match[1]}.{part}.{match.groups()[-1]}'] = piece.clone()
            del cut[key]
    return cut


def reshaped(patterns: Sequence[str], ours: Sequence[int], theirs: Sequence[int]) -> Step:
    """Return the step that views the tensors of some keys in another shape.

    Args:
        patterns: Patterns of the keys.
        ours: Our shape; -1 once, 0 keeps a side.
        theirs: The source's shape, in the same way.
    """
    return Step(
        lambda weights: _reshape(weights, patterns, ours),
        lambda weights: _reshape(weights, patterns, theirs),
    )


def _reshape(state_dict: StateDict, patterns: Sequence[str], shape: Sequence[int]) -> StateDict:
    regexes = [_compile(pattern) for pattern in patterns]
    return {
        key: value.reshape([value.shape[i] if n == 0 else n for i, n in enumerate(shape)])
        if any(regex.fullmatch(key) for regex in regexes)
        else value
        for key, value in state_dict.items()
    }
