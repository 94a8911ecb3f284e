"""What every test runs with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _no_scope_left_behind() -> Iterator[None]:
    """Keep the default scope that a runner sets from reaching the next test of the process."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def seed() -> None:
    """Seed torch's global generator."""
    torch.manual_seed(0)
