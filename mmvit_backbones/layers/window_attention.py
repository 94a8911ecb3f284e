"""Attention inside square windows of a map.

Legend: B batch, H x W tokens, C channels, h heads, d channels a head, n tokens in a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.layout import channels_first, channels_last
from mmvit_backbones.layers.norm import norm_map
from mmvit_backbones.layers.padding import crop, is_dynamic, pad_to_multiple
from mmvit_backbones.layers.windows import Tiling, join_windows, norm_qkv

WINDOW_PADDINGS = ('mask', 'zero')


def window_mask(padded: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """Say which keys of each window are tokens of the map.

    Args:
        padded: Map with its padding (B, H, W, C).
        height: Rows of the map itself.
        width: Columns of the map itself.
        window_size: Side of a window.

    Returns:
        Booleans (windows, 1, 1, n), to broadcast over heads and queries.
    """
    rows = torch.arange(padded.shape[1], device=padded.device) < height
    columns = torch.arange(padded.shape[2], device=padded.device) < width
    inside = rearrange(
        (rows[:, None] & columns).expand(len(padded), -1, -1),
        'b (y i) (x j) -> (b y x) (i j)',
        i=window_size,
        j=window_size,
    )
    return inside[:, None, None]


def _pad(x: Tensor, window_size: int) -> Tensor:
    """Zero-pad a map (B, H, W, C) to whole windows."""
    return channels_last(pad_to_multiple(channels_first(x), window_size))


class WindowAttention(nn.Module):
    """Locally-grouped self-attention, LSA (Twins, arXiv 2104.13840, section 3.2).

    Windows start at the top left. Those that reach over the bottom or right border are handled by
    `padding`: with `'mask'`, only their tokens inside the map take part. They are cut off at the
    border, which is what a mask over padded windows amounts to; only graphs compiled for any size
    pad and mask. With `'zero'`, the map is padded with zero tokens, which take part as keys and
    values, as in the authors' detection code.

    Args:
        dims: Channels in and out.
        num_heads: Heads.
        head_dims: Channels a head.
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
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dims, 3 * inner_dims, bias=qkv_bias)
        self.proj = nn.Linear(inner_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Norm a map (B, H, W, C) and attend within its windows."""
        size = self.window_size
        height, width = x.shape[1:3]
        if self.padding == 'zero':
            padded = _pad(norm_map(x, norm), size)
            tiling = Tiling.of_multiple(padded.shape[1], padded.shape[2], size)
            return crop(self._attend(padded, None, tiling), height, width)
        if is_dynamic(height, width):
            padded = _pad(x, size)
            tiling = Tiling.of_multiple(padded.shape[1], padded.shape[2], size)
            mask = window_mask(padded, height, width, size)
            return crop(self._attend(padded, norm, tiling, mask), height, width)
        return self._attend(x, norm, Tiling.cut_at_border(height, width, size))

    def _attend(
        self, x: Tensor, norm: nn.LayerNorm | None, tiling: Tiling, mask: Tensor | None = None
    ) -> Tensor:
        """Attend within the windows of a map (B, H, W, C)."""
        drop = self.attn_drop_rate if self.training else 0.0
        attended = [
            F.scaled_dot_product_attention(q, k, v, mask, dropout_p=drop)  # (w, h, n, d)
            for q, k, v in norm_qkv(x.flatten(1, 2), norm, self.qkv, self.num_heads, tiling)
        ]
        return self.drop(self.proj(join_windows(attended, tiling))).view(x.shape)
