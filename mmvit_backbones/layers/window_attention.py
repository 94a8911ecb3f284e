"""Attention inside square windows of a feature map.

Legend: B batch, H x W = N tokens, C channels, h heads, d channels per head, w windows of an image,
n tokens of a window.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.folding import fold_norm
from mmvit_backbones.layers.tokens import Size, ceil_div

WINDOW_PADDINGS = ('mask', 'zero')


def window_indices(
    size: Size, window_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Map the tokens of a grid to windows that tile it from the top left, row by row, and back.

    Windows at the bottom and right may reach over the border; their tokens there are padding.

    Args:
        size: Rows and columns of the grid, (H, W).
        window_size: Side of a window.
        device: Where to make the indices.

    Returns:
        `to_windows` (wn): for each token of each window, its index in the grid; any for padding.
        `is_inside` (wn): whether that token lies in the grid.
        `to_grid` (N): for each token of the grid, its index among the tokens of all windows.
    """
    height, width = size
    s = window_size
    windows_per_row = ceil_div(width, s)
    index = torch.arange(ceil_div(height, s) * windows_per_row * s * s, device=device)
    window, place = index // s**2, index % s**2
    window_row = window // windows_per_row
    window_column = window - window_row * windows_per_row
    row, column = window_row * s + place // s, window_column * s + place % s
    is_inside = (row < height) & (column < width)
    to_windows = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
    index = torch.arange(height * width, device=device)
    row = index // width
    column = index - row * width
    window = row // s * windows_per_row + column // s
    to_grid = window * s**2 + row % s * s + column % s
    return to_windows, is_inside, to_grid


class WindowAttention(nn.Module):
    """Locally-grouped self-attention, LSA (Twins, arXiv 2104.13840, section 3.2).

    Windows tile the grid of tokens from the top left. Those at the bottom and right are padded
    where they reach over the border. With padding `'mask'`, the padding takes no part in attention.
    With `'zero'`, it consists of zero tokens that are keys and values, as in the authors' detection
    code.

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels per head.
        window_size: Side of a window in tokens.
        qkv_bias: Give the query, key and value projections a bias.
        padding: `'mask'` or `'zero'`.
        attn_drop_rate: Dropout probability of attention weights.
        drop_rate: Dropout probability of the output.

    Raises:
        ValueError: If `padding` is not known.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        head_dims: int,
        window_size: int,
        qkv_bias: bool = True,
        padding: str = 'mask',
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if padding not in WINDOW_PADDINGS:
            raise ValueError(f'window_padding must be one of {WINDOW_PADDINGS}, got {padding!r}')
        inner_dims = num_heads * head_dims
        self.num_heads = num_heads
        self.window_size = window_size
        self.padding = padding
        self.qkv = nn.Linear(dims, 3 * inner_dims, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = nn.Linear(inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend within the windows of tokens (B, N, C) on a grid of `size` (H, W)."""
        to_windows, is_inside, to_grid = window_indices(size, self.window_size, x.device)
        windows = x.index_select(1, to_windows)  # (B, wn, C)
        mask = None
        if self.padding == 'mask':
            mask = self._split(is_inside.repeat(x.shape[0]))[:, None, None]  # (Bw, 1, 1, n)
        else:
            windows = windows * is_inside[:, None]
        qkv = self.qkv(self._split(windows.flatten(0, 1)))  # (Bw, n, 3hd)
        q, k, v = rearrange(qkv, 'bw n (three h d) -> three bw h n d', three=3, h=self.num_heads)
        out = attention(q, k, v, self.attn_drop, mask)  # (Bw, h, n, d)
        out = self.drop(self.proj(rearrange(out, 'bw h n d -> bw n (h d)')))
        out = out.flatten(0, 1).unflatten(0, (x.shape[0], to_windows.shape[0]))  # (B, wn, C)
        return out.index_select(1, to_grid)

    def _split(self, rows: Tensor) -> Tensor:
        """Split the rows (Bwn, ...) of all windows into windows (Bw, n, ...)."""
        window_tokens = self.window_size**2
        return rows.unflatten(0, (rows.shape[0] // window_tokens, window_tokens))

    def fold_norm(self, norm: nn.Module) -> None:
        """Move the affine part of the norm before this layer into it.

        Not with padding `'zero'`: a shift of the tokens would not reach those of the padding.
        """
        if self.padding == 'mask':
            fold_norm(norm, self.qkv)
