"""Padding, cropping and copying of feature maps whose sizes are known.

Serves `layers.tokens.pad_to_multiple`, `crop` and `as_contiguous`. The first two make no copy where
none is needed. The last copies one image at a time as a matrix, which PyTorch transposes in blocks
that fit the cache; it copies a map of four dimensions element by element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmvit_backbones.kernels.modes import is_static
from mmvit_backbones.layers.tokens import Size


def pad_refusal(mode: str, feature_map: Tensor, multiple: int, *value: Any) -> str | None:
    """Return why the kernel does not pad a feature map; None if it does."""
    height, width = feature_map.shape[2:]
    if not is_static(height, width):
        return 'the graph has dynamic shapes'
    if height % multiple or width % multiple:
        return 'the feature map needs padding'
    return None


def run_pad(mode: str, feature_map: Tensor, multiple: int, *value: Any) -> Tensor:
    """Return the feature map itself."""
    return feature_map


def crop_refusal(mode: str, feature_map: Tensor, size: Size) -> str | None:
    """Return why the kernel does not crop a feature map; None if it does."""
    if is_static(*feature_map.shape[2:], *size):
        return None
    return 'the graph has dynamic shapes'


def run_crop(mode: str, feature_map: Tensor, size: Size) -> Tensor:
    """Return a view of the feature map."""
    height, width = size
    return feature_map[:, :, :height, :width]


def contiguous_refusal(mode: str, feature_map: Tensor) -> str | None:
    """Return why the kernel does not copy a feature map; None if it does."""
    if feature_map.device.type != 'cpu':
        return f'device {feature_map.device.type}, expected a CPU'
    if not feature_map.is_contiguous(memory_format=torch.channels_last):
        return 'the feature map is not in channels_last format'
    return None


def run_contiguous(mode: str, feature_map: Tensor) -> Tensor:
    """Return a contiguous copy of a feature map (B, C, H, W)."""
    batch, channels, height, width = feature_map.shape
    tokens = feature_map.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    copy = feature_map.new_empty(batch, channels, height * width)
    for image in range(batch):
        copy[image].copy_(tokens[image].t())
    return copy.view(batch, channels, height, width)
