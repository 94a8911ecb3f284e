"""All subjects return the same maps, or the comparison is of different work."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import subjects


@pytest.mark.parametrize(
    ('network', 'peers'),
    [
        ('twins_svt_small', {'timm', 'mmpretrain', 'mmpretrain.TIMMBackbone', 'mmseg'}),
        ('xcit_nano_12_p16', {'timm', 'mmpretrain', 'mmpretrain.TIMMBackbone'}),
        ('twins_svt_vit_pytorch', {'vit-pytorch'}),
        ('xcit_vit_pytorch', set()),
    ],
)
def test_peers_have_the_same_maps(network: str, peers: set[str]) -> None:
    builders = subjects(network)
    assert set(builders) == {'ours', *peers}
    if not peers:
        return
    # That package takes images whose feature maps are whole windows of 7 x 7.
    x = torch.zeros(1, 3, *((224, 224) if 'vit-pytorch' in peers else (64, 96)))
    shapes = {}
    for name, build in builders.items():
        model = build(network)
        model.eval()  # mmpretrain's returns None
        with torch.no_grad():
            shapes[name] = [tuple(m.shape) for m in model(x)]
    assert len(shapes['ours']) == 4
    assert all(found == shapes['ours'] for found in shapes.values()), shapes
