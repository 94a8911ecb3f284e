"""The model zoo's numbers and addresses."""

from __future__ import annotations

import pytest
import timm

from mmvit_backbones import create_model, list_models
from mmvit_backbones.checkpoints.zoo import ZOO
from mmvit_backbones.complexity import count_multiply_adds, count_parameters
from tests.checkpoints.peers import without_values

# Reported by mmpretrain's metafiles, in 10^9 at 224 x 224.
REPORTED = {
    'twins_svt_small': 2.82,
    'twins_svt_base': 8.35,
    'twins_svt_large': 14.82,
    'xcit_nano_12_p8': 2.157,
    'xcit_nano_12_p16': 0.557,
    'xcit_tiny_12_p8': 4.807,
    'xcit_tiny_12_p16': 1.240,
    'xcit_tiny_24_p8': 9.206,
    'xcit_tiny_24_p16': 2.339,
    'xcit_small_12_p8': 18.692,
    'xcit_small_12_p16': 4.815,
    'xcit_small_24_p8': 35.812,
    'xcit_small_24_p16': 9.095,
    'xcit_medium_24_p8': 63.525,
    'xcit_medium_24_p16': 16.130,
    'xcit_large_24_p8': 141.226,
    'xcit_large_24_p16': 35.856,
}


def test_every_model_has_an_entry() -> None:
    assert sorted(ZOO) == sorted(list_models())


@pytest.mark.parametrize('name', ZOO)
def test_numbers(name: str) -> None:
    with without_values():
        model = create_model(name, num_classes=1000)
    assert ZOO[name].parameters == count_parameters(model)
    counted = count_multiply_adds(model, 224, 224)
    if name.startswith('twins'):
        assert counted == ZOO[name].multiply_adds
    else:  # our cross-covariance attention chooses the cheapest of equivalent orders
        assert 0.8 * ZOO[name].multiply_adds < counted <= ZOO[name].multiply_adds


@pytest.mark.parametrize('name', ['xcit_nano_12_p8', 'xcit_tiny_12_p16', 'xcit_medium_24_p16'])
def test_same_counter_on_timms_model(name: str) -> None:
    with without_values():
        model = timm.create_model(f'{name}_224')
    assert count_parameters(model) == ZOO[name].parameters
    assert abs(count_multiply_adds(model, 224, 224) / ZOO[name].multiply_adds - 1) < 0.005


@pytest.mark.parametrize('name', REPORTED)
def test_near_what_is_reported(name: str) -> None:
    """Reported numbers leave out attention (Twins-SVT) or count norms and activations (XCiT)."""
    ratio = ZOO[name].multiply_adds / (REPORTED[name] * 1e9)
    assert 0.98 < ratio < 1.04


def test_timm_knows_its_names() -> None:
    known = set(timm.list_pretrained('twins_svt*') + timm.list_pretrained('xcit*'))
    assert {name for entry in ZOO.values() for name in entry.timm} == known


def test_addresses() -> None:
    files = [file for entry in ZOO.values() for file in entry.files]
    addresses = [file.address for file in files]
    assert len(set(addresses)) == len(addresses) == 3 + 14 * 3 + 4
    for file in files:
        assert file.address.startswith('https://')
        assert file.is_distilled == file.name.endswith('_dist.pth')
        assert (file.top1 is None) == file.name.endswith('_dino.pth')
    xcit = ZOO['xcit_small_12_p16'].files
    assert xcit[0].address == 'https://dl.fbaipublicfiles.com/xcit/xcit_small_12_p16_224.pth'
    assert xcit[3].name == 'xcit_small_12_cp16_dino.pth'
