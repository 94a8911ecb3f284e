"""The rule tables' engine."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.rules import find, joined, rename, reshaped, under
from tests.utils import assert_same

RULES = (
    *under('layers.#.', 'blocks.#.', (('#.norm.*', '#.norm1.*'), ('gamma', 'scale'))),
    ('old.*', None),
    (None, 'new.*'),
)
ONE = torch.ones(1)


def test_rename_both_ways() -> None:
    theirs = {'layers.0.12.norm.weight': ONE, 'layers.3.gamma': 2 * ONE}
    ours = {'blocks.0.12.norm1.weight': ONE, 'blocks.3.scale': 2 * ONE}
    assert_same(rename(theirs, RULES, to_ours=True), ours)
    assert_same(rename(ours, RULES, to_ours=False), theirs)


def test_explicit_drops() -> None:
    assert rename({'old.weight': ONE}, RULES, to_ours=True) == {}
    assert rename({'new.bias': ONE}, RULES, to_ours=False) == {}


def test_unmatched_keys_are_counted_and_shown() -> None:
    weights = {f'what.{i}': ONE for i in range(5)} | {'layers.0.gamma': ONE}
    with pytest.raises(
        CheckpointError, match=r'no rule for 5 of 6 keys: 5 \(what\.0, what\.1, what\.2, \.\.\.\)'
    ):
        rename(weights, RULES, to_ours=True)
    with pytest.raises(CheckpointError, match='no rule for 1 of 1 keys'):
        rename({'new.weight': ONE}, RULES, to_ours=True)  # a drop of the other direction


def test_a_wildcard_matches_one_part_only() -> None:
    for key in ('layers.0.1.norm.weight.extra', 'layers.x.1.norm.weight', 'layersX0.gamma'):
        with pytest.raises(CheckpointError, match='no rule'):
            rename({key: ONE}, RULES, to_ours=True)


def test_two_rules_for_a_key() -> None:
    rules = (('a.*', 'b.*'), ('a.weight', 'c'))
    with pytest.raises(CheckpointError, match=r"'a\.weight' has more than one rule"):
        rename({'a.weight': ONE}, rules, to_ours=True)


def test_two_keys_with_one_name() -> None:
    rules = (('a', 'c'), ('b', 'c'))
    with pytest.raises(CheckpointError, match="'a' and 'b' both become 'c'"):
        rename({'a': ONE, 'b': ONE}, rules, to_ours=True)


def test_join_and_its_inverse() -> None:
    whole = {'attn.0.qkv.weight': torch.arange(18.0).view(6, 3), 'attn.0.qkv.bias': torch.ones(6)}
    step = joined('attn.#', {'q': 1, 'kv': 2}, 'qkv')
    parts = step.to_theirs(whole)
    assert {key: tuple(value.shape) for key, value in parts.items()} == {
        'attn.0.q.weight': (2, 3),
        'attn.0.kv.weight': (4, 3),
        'attn.0.q.bias': (2,),
        'attn.0.kv.bias': (4,),
    }
    assert_same(step.to_ours(parts), whole)
    assert_same(step.inverse.to_ours(whole), parts)


def test_join_and_split_of_wrong_layers() -> None:
    with pytest.raises(
        CheckpointError, match=r"'attn\.q\.weight' is there, but not attn\.v\.weight"
    ):
        joined('attn', {'q': 1, 'v': 1}, 'qv').to_ours({'attn.q.weight': ONE})
    with pytest.raises(CheckpointError, match='has 4 rows, not a multiple of 3'):
        joined('attn', {'q': 1, 'k': 1, 'v': 1}, 'qkv').to_theirs({'attn.qkv.bias': torch.ones(4)})


def test_reshape() -> None:
    weights = {'norm.0.weight': torch.ones(1, 3, 1, 1), 'fc.weight': torch.ones(2, 3, 1, 1)}
    step = reshaped(('norm.#.*',), ours=(-1,), theirs=(1, -1, 1, 1))
    ours = reshaped(('fc.weight',), ours=(0, 0), theirs=(0, 0, 1, 1)).to_ours(step.to_ours(weights))
    assert ours['norm.0.weight'].shape == (3,)
    assert ours['fc.weight'].shape == (2, 3)
    assert step.to_theirs(ours)['norm.0.weight'].shape == (1, 3, 1, 1)


def test_find() -> None:
    weights = {'a.10.b.0': 'last', 'a.2.b.1': 'second', 'a.2.b.0': 'first', 'a.x.b.0': 'no number'}
    assert find(weights, 'a.#.b.#') == {(2, 0): 'first', (2, 1): 'second', (10, 0): 'last'}
    assert list(find(weights, 'a.#.b.#')) == [(2, 0), (2, 1), (10, 0)]
    assert find(weights, 'a.#') == {}
