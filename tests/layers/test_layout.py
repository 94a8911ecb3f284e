"""Views of maps: the same memory in either order, traced or not."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones.layers import layout


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('traced', [False, True])
def test_views(batch: int, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, 'is_traced', lambda: traced)
    x = torch.randn(batch, 5, 7, 3)
    first = layout.channels_first(x)
    last = layout.channels_last(first)
    assert torch.equal(first, x.permute(0, 3, 1, 2))
    assert torch.equal(last, x)
    assert first.data_ptr() == last.data_ptr() == x.data_ptr()
    assert first.is_contiguous(memory_format=torch.channels_last)
