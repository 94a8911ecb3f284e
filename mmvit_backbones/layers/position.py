"""Position encodings that fit any map size.

Legend: B batch, H x W tokens, C channels.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.layout import channels_first, channels_last
from mmvit_backbones.layers.precision import at_least_float32, without_autocast


class PositionEncodingGenerator(nn.Module):
    """Depth-wise 3x3 convolution with a residual (CPVT, arXiv 2102.10882, section 3.3).

    Args:
        dims: Channels.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dims, dims, 3, padding=1, groups=dims))

    def forward(self, x: Tensor) -> Tensor:
        """Add a position-dependent term to a map (B, H, W, C)."""
        tokens = x.flatten(1, 2)  # (B, HW, C)
        local = self.proj(channels_first(tokens.view(x.shape)))
        return (tokens + channels_last(local).flatten(1, 2)).view(x.shape)


def fourier_features(length: int, dims: int, device: torch.device) -> Tensor:
    """Sines and cosines of the positions along one side of a map.

    Positions run from 1 / length to 1 turn, so that a side of any length spans the same range. The
    operations and their fp32 precision are those under which the authors' weights were trained.

    Args:
        length: Tokens along the side.
        dims: Features, sine and cosine in turn, at wavelengths from 1 up to 10,000 turns.
        device: Where to compute them.

    Returns:
        Features (length, dims), fp32.
    """
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    angle = position / (position[-1:] + 1e-6) * (2 * pi)
    pair = torch.arange(dims, dtype=torch.float32, device=device).div(2, rounding_mode='floor')
    angles = angle[:, None] / 10000 ** (2 * pair / dims)  # (length, dims)
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1)


class FourierPosition(nn.Module):
    """Projected sines and cosines of both coordinates (XCiT, arXiv 2106.09681, appendix A).

    The projection of a row's and a column's features is the sum of one term a row and one term a
    column, so both are projected apart and no feature map of H x W tokens is made. The features
    are cached by length, device and dtype; at 32 numbers a token of one side the cache stays small.

    Args:
        dims: Channels.
        hidden_dims: Features a coordinate.
    """

    def __init__(self, dims: int, hidden_dims: int = 32) -> None:
        super().__init__()
        self.hidden_dims = hidden_dims
        self.token_projection = nn.Conv2d(2 * hidden_dims, dims, 1)
        self._cache: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_cache': {}}  # copies and files need no derived values

    def forward(self, x: Tensor) -> Tensor:
        """Add the position to a map (B, H, W, C); computed in fp32 at least."""
        weight = self.token_projection.weight.flatten(1)  # (C, 2 hidden_dims), rows first
        row_weight, column_weight = weight.split(self.hidden_dims, dim=1)
        with without_autocast(x.device):
            rows = F.linear(self._features(x.shape[1]), row_weight)
            columns = F.linear(
                self._features(x.shape[2]), column_weight, self.token_projection.bias
            )
        table = rows[:, None] + columns  # (H, W, C)
        return (x.flatten(1, 2) + table.flatten(0, 1)).view(x.shape)

    def _features(self, length: int) -> Tensor:
        weight = self.token_projection.weight
        if torch.compiler.is_compiling():
            return fourier_features(length, self.hidden_dims, weight.device).to(weight.dtype)
        key = (length, weight.device, weight.dtype)
        if key not in self._cache:
            with torch.inference_mode(False):  # or a later training step could not use it
                features = fourier_features(length, self.hidden_dims, weight.device)
                self._cache[key] = features.to(weight.dtype)
        return self._cache[key]


class LearnedPosition(nn.Module):
    """A learned vector for each token of a grid, interpolated for maps of another size.

    Args:
        dims: Channels.
        grid_size: Rows and columns of the grid.
    """

    def __init__(self, dims: int, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, *grid_size, dims))

    def forward(self, x: Tensor) -> Tensor:
        """Add the position to a map (B, H, W, C); interpolated in fp32 at least."""
        if x.shape[1:3] == self.table.shape[1:3]:
            return x + self.table
        table = at_least_float32(self.table).permute(0, 3, 1, 2)
        resized = F.interpolate(table, x.shape[1:3], mode='bicubic', align_corners=False)
        return x + resized.permute(0, 2, 3, 1).to(self.table.dtype)
