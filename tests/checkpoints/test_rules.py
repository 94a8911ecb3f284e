"""The rule tables' engine."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.rules import join, rename, reshape, split, under
from tests.checkpoints.peers import assert_same

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


def test_join_undoes_split() -> None:
    whole = {'attn.0.qkv.weight': torch.arange(18.0).view(6, 3), 'attn.0.qkv.bias': torch.ones(6)}
    parts = split(whole, r'attn\.\d', 'qkv', {'q': 1, 'kv': 2})
    assert {key: tuple(value.shape) for key, value in parts.items()} == {
        'attn.0.q.weight': (2, 3),
        'attn.0.kv.weight': (4, 3),
        'attn.0.q.bias': (2,),
        'attn.0.kv.bias': (4,),
    }
    assert_same(join(parts, r'attn\.\d', ('q', 'kv'), 'qkv'), whole)


def test_join_and_split_of_wrong_layers() -> None:
    with pytest.raises(
        CheckpointError, match=r"'attn\.q\.weight' is there, but not attn\.v\.weight"
    ):
        join({'attn.q.weight': ONE}, 'attn', ('q', 'v'), 'qv')
    with pytest.raises(CheckpointError, match='has 4 rows, not a multiple of 3'):
        split({'attn.qkv.weight': torch.ones(4)}, 'attn', 'qkv', {'q': 1, 'k': 1, 'v': 1})


def test_reshape() -> None:
    weights = {'norm.weight': torch.ones(1, 3, 1, 1), 'fc.weight': torch.ones(2, 3, 1, 1)}
    weights = reshape(weights, r'norm\.weight', (-1,))
    weights = reshape(weights, r'fc\.weight', (0, 0))
    assert weights['norm.weight'].shape == (3,)
    assert weights['fc.weight'].shape == (2, 3)
