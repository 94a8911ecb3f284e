"""Kernels are as they were after each test: forms switch them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmvit_backbones.layers.seam import get_dispatcher, use_dispatcher


@pytest.fixture(autouse=True)
def _kernels_as_before() -> Iterator[None]:
    with use_dispatcher(get_dispatcher()):
        yield
