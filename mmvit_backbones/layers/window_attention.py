"""Attention inside square windows of a map.

Legend: B batch, H x W tokens, C channels, h heads, d channels a head, n tokens in a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.lean import norm_qkv, split_heads
from mmvit_backbones.layers.padding import crop, is_dynamic, pad_to_multiple

WINDOW_PADDINGS = ('mask', 'zero')


def split_at_border(size: int, window_size: int) -> list[tuple[int, int]]:
    """Cut one side of a map into a part that windows tile and a rest shorter than a window.

    Returns:
        (length of the part, side of its windows), without empty parts.
    """
    rest = size % window_size
    parts = [(size - rest, window_size), (rest, rest)]
    return [(length, side) for length, side in parts if length > 0]


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
            out = self._attend(pad_to_multiple(norm(x), size), norm, size, size)
        elif is_dynamic(height, width):
            padded = pad_to_multiple(x, size)
            mask = window_mask(padded, height, width, size)
            out = self._attend(padded, norm, size, size, mask)
        else:
            return self._attend_in_parts(x, norm)
        return crop(out, height, width)

    def _attend_in_parts(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Attend in the windows of a map (B, H, W, C), cutting off those at the border."""
        rows = split_at_border(x.shape[1], self.window_size)
        columns = split_at_border(x.shape[2], self.window_size)
        strips = []
        for strip, (_, window_height) in zip(
            x.split([length for length, _ in rows], dim=1), rows, strict=True
        ):
            regions = strip.split([length for length, _ in columns], dim=2)
            attended = [
                self._attend(region, norm, window_height, window_width)
                for region, (_, window_width) in zip(regions, columns, strict=True)
            ]
            strips.append(attended[0] if len(attended) == 1 else torch.cat(attended, dim=2))
        return strips[0] if len(strips) == 1 else torch.cat(strips, dim=1)

    def _attend(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        window_height: int,
        window_width: int,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend in windows that tile a region (B, H, W, C); a view of windows in a row."""
        # Bringing x into window order is one copy; doing it with queries, keys and values is three.
        windows = rearrange(
            x, 'b (y i) (x j) c -> (b y x) (i j) c', i=window_height, j=window_width
        )
        if self.padding == 'zero':
            q, k, v = split_heads(self.qkv(windows), self.num_heads)
        else:
            q, k, v = norm_qkv(windows, norm, self.qkv, self.num_heads)
        drop = self.attn_drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=drop)  # (w, h, n, d)
        out = self.drop(self.proj(rearrange(out, 'w h n d -> w n (h d)')))
        return rearrange(
            out,
            '(b y x) (i j) c -> b (y i) (x j) c',
            b=x.shape[0],
            y=x.shape[1] // window_height,
            x=x.shape[2] // window_width,
            i=window_height,
        )
