"""Adaptive average pooling of maps of any size, by two matrix products.

ONNX has no adaptive pooling, and PyTorch's graph of it holds for one size of map.

Legend: B batch, C channels, H x W positions, o bins along a side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def bin_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """Weights (o, length) of the mean of each bin, with PyTorch's borders of the bins.

    Bin i holds the positions from floor(i * length / o) to ceil((i + 1) * length / o) - 1.

    Args:
        length: Positions along the side.
        bins: Bins along the side, o.
        like: Tensor with the device and dtype of the result.
    """
    position = torch.arange(length, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    start, end = index * length // bins, ((index + 1) * length + bins - 1) // bins
    is_inside = (position >= start) & (position < end)
    return is_inside.to(like.dtype) / (end - start).to(like.dtype)


class AdaptiveAveragePooling(nn.Module):
    """What `nn.AdaptiveAvgPool2d` computes, in a graph for any size of map.

    Args:
        bins: Rows and columns of the result.
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Average a map (B, C, H, W) to (B, C, *bins)."""
        rows = bin_weights(x.shape[2], self.bins[0], x)
        columns = bin_weights(x.shape[3], self.bins[1], x)
        return rows @ x @ columns.transpose(0, 1)


def replace_adaptive_pooling(model: nn.Module) -> None:
    """Replace every `nn.AdaptiveAvgPool2d` in a model that has whole bins."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is not nn.AdaptiveAvgPool2d:
                continue
            size = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            if rows is not None and columns is not None:
                setattr(parent, name, AdaptiveAveragePooling((rows, columns)))
