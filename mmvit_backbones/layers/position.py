"""Position encodings that fit any map size."""

from __future__ import annotations

from torch import Tensor, nn


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
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
