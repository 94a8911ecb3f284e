"""Position encodings that fit any grid of tokens.

Legend: B batch, H x W = N tokens, C channels.
"""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.precision import at_least_float32, without_autocast
from mmvit_backbones.layers.tokens import Size, to_map, to_tokens


class PositionEncodingGenerator(nn.Module):
    """Depth-wise 3x3 convolution with a residual (CPVT, arXiv 2102.10882, section 3.3).

    Args:
        dims: Channels.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dims, dims, 3, padding=1, groups=dims))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Add a position-dependent term to tokens (B, N, C) of a grid of `size` (H, W)."""
        return x + to_tokens(self.proj(to_map(x, size)))


def fourier_features(length: int, dims: int, device: torch.device) -> Tensor:
    """Sines and cosines of the positions along one side of a grid.

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

    Args:
        dims: Channels.
        hidden_dims: Features per coordinate.
    """

    def __init__(self, dims: int, hidden_dims: int = 32) -> None:
        super().__init__()
        self.hidden_dims = hidden_dims
        self.token_projection = nn.Conv2d(2 * hidden_dims, dims, 1)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Add the position to tokens (B, N, C) of a grid of `size` (H, W).

        Sines and cosines are fp32; the projection runs in its parameters' dtype, without autocast.
        """
        height, width = size
        rows, columns = (fourier_features(n, self.hidden_dims, x.device) for n in size)
        features = torch.cat(
            (
                rows[:, None].expand(-1, width, -1),
                columns[None].expand(height, -1, -1),
            ),
            dim=-1,
        )  # (H, W, 2 hidden_dims)
        dtype = next((p.dtype for p in self.parameters()), x.dtype)
        with without_autocast(x.device):
            position = self.token_projection(features.permute(2, 0, 1)[None].to(dtype))
        return x + to_tokens(position)


class LearnedPosition(nn.Module):
    """A learned vector for each token of a grid, interpolated to grids of another size.

    Args:
        dims: Channels.
        grid_size: Rows and columns of the grid.
    """

    def __init__(self, dims: int, grid_size: Size) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, *grid_size, dims))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Add the position, resized in fp32 at least, to tokens (B, N, C) of a grid of `size`."""
        table = at_least_float32(self.table).permute(0, 3, 1, 2)
        # On the table's own grid, bicubic weights are exactly 0 and 1.
        resized = F.interpolate(table, size, mode='bicubic', align_corners=False)
        return x + to_tokens(resized).to(self.table.dtype)
