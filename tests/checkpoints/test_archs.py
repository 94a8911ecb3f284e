"""Architectures told by shapes."""

from __future__ import annotations

import pytest

from mmvit_backbones import create_model, list_models
from mmvit_backbones.checkpoints.archs import (
    known_archs,
    looks_of_arch,
    looks_of_model,
    looks_of_weights,
)
from tests.checkpoints.peers import TWINS, XCIT, classifier, without_values


def test_every_named_model_is_known() -> None:
    assert sorted(known_archs()) == sorted(list_models())
    assert len(set(known_archs().values())) == len(list_models())


@pytest.mark.parametrize('name', list_models())
def test_model_and_weights_look_like_their_name(name: str) -> None:
    with without_values():
        model = create_model(name, num_classes=3)
    weights = model.state_dict()
    network = 'xcit' if name.startswith('xcit') else 'twins_svt'
    assert str(looks_of_weights(weights, network)) == name
    assert str(looks_of_model(model.backbone)) == name
    assert looks_of_arch(name).fits(looks_of_weights(weights, network))


def test_an_xcit_arch_leaves_the_patch_size_open() -> None:
    for patch_size in (8, 16):
        weights = classifier(XCIT, patch_size).state_dict()
        assert looks_of_arch(XCIT).fits(looks_of_weights(weights, 'xcit'))
    assert not looks_of_arch(TWINS).fits(looks_of_arch(XCIT))
    assert not looks_of_arch('xcit_tiny_12_p8').fits(looks_of_arch('xcit_tiny_12_p16'))


def test_unknown_architectures_are_described() -> None:
    assert str(looks_of_arch(TWINS)) == (
        'a twins_svt in the paper layout with embed_dims (8, 16, 24, 32), '
        "blocks ('LG', 'L', 'LGL', 'LG')"
    )
