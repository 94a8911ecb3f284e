"""Padding and cropping without a copy where one is not needed.

Serves `layers.tokens.pad_to_multiple` and `crop`, neither of them in graphs: those may have dynamic
shapes, and compilers omit the copies themselves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmvit_backbones.layers.tokens import Size


def pad_refusal(mode: str, feature_map: Tensor, multiple: int, *value: Any) -> str | None:
    """Return why the kernel does not pad a feature map; None if it does."""
    height, width = feature_map.shape[2:]
    if height % multiple or width % multiple:
        return 'the feature map needs padding'
    return None


def run_pad(mode: str, feature_map: Tensor, multiple: int, *value: Any) -> Tensor:
    """Return the feature map itself."""
    return feature_map


def crop_refusal(mode: str, feature_map: Tensor, size: Size) -> str | None:
    """Return None: the kernel crops every feature map."""
    return None


def run_crop(mode: str, feature_map: Tensor, size: Size) -> Tensor:
    """Return the feature map itself, or a copy if something is cut off."""
    height, width = size
    return feature_map[:, :, :height, :width].contiguous()
