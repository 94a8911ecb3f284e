"""ConvStem: sizes and widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvit_backbones.layers.conv_stem import ConvStem


@pytest.mark.parametrize(('patch_size', 'widths'), [(8, [4, 8, 16]), (16, [2, 4, 8, 16])])
def test_widths_and_sizes(patch_size: int, widths: list[int]) -> None:
    stem = ConvStem(3, 16, patch_size, dict(type='BN'))
    convs = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == widths
    for height, width in [(32, 32), (33, 47), (48, 49), (1, 100)]:
        rows, columns = -(-height // patch_size), -(-width // patch_size)
        tokens, size = stem(torch.randn(2, 3, height, width))
        assert size == (rows, columns)
        assert tokens.shape == (2, rows * columns, 16)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r'patch_size must be one of \(4, 8, 16\) .* got 5'):
        ConvStem(3, 16, 5, dict(type='BN'))
    with pytest.raises(ValueError, match=r'embed_dims must be a multiple of 4 .* got 18'):
        ConvStem(3, 18, 8, dict(type='BN'))
