"""Models in a folder, as huggingface_hub's mixin writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmvit_backbones import TwinsSVT, XCiT, create_model
from mmvit_backbones.models import Classifier
from tests.models import SMALL
from tests.utils import as_maps, randomize

pytest.importorskip('huggingface_hub')
TINY = dict(embed_dims=16, depth=5, num_heads=2, head_dims=8, mlp_dims=24, patch_size=8)


@pytest.mark.parametrize('num_classes', [None, 0, 5])
def test_there_and_back(num_classes: int | None, tmp_path: Path) -> None:
    model = create_model('xcit_vit_pytorch', num_classes, drop_path_rate=0.1, **TINY)
    randomize(model).eval()
    model.save_pretrained(tmp_path / 'mine')
    assert {'config.json', 'model.safetensors'} <= {p.name for p in (tmp_path / 'mine').iterdir()}
    config = json.loads((tmp_path / 'mine' / 'config.json').read_text())
    assert config['name'] == 'xcit_vit_pytorch'
    assert config['options']['embed_dims'] == 16
    again = type(model).from_pretrained(tmp_path / 'mine').eval()
    assert again.creation == model.creation
    x = torch.randn(1, 3, 64, 72)
    with torch.no_grad():
        assert all(map(torch.equal, as_maps(again(x)), as_maps(model(x))))


def test_another_head(tmp_path: Path) -> None:
    model = create_model('xcit_vit_pytorch', 5, **TINY)
    model.reset_classifier(3)
    model.save_pretrained(tmp_path)
    assert Classifier.from_pretrained(tmp_path)(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='must be one of create_model'):
        SMALL['xcit']().save_pretrained(tmp_path)
    create_model('xcit_vit_pytorch', **TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'must hold a TwinsSVT, .* holds a XCiT'):
        TwinsSVT.from_pretrained(tmp_path)
    weights = tmp_path / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'model\.safetensors'):
        XCiT.from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match=r'must have a config\.json with the name'):
        XCiT.from_pretrained(tmp_path)
