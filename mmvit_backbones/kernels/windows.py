"""Window attention with smaller windows at the border instead of padding and a mask.

Serves the branch `attn(norm(x), size)` with window padding `'mask'`. Attention under a mask equals
attention among the tokens that are not masked. So a grid is cut into up to four regions, each tiled
by windows of one size: the whole windows, and those that the right or the bottom border, or both,
cut off. The tokens of all windows are gathered into the rows of one matrix, so `qkv` runs once.
For the backward pass of norm and `qkv` only the input is saved, unless the graph is compiled.

Legend: B batch, H x W = N tokens, C channels, R = BN rows, h heads, d channels per head, w windows
of one region in all images together, n tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.kernels import operators
from mmvit_backbones.kernels.autograd import compute_dtype, refuse_second_derivative
from mmvit_backbones.kernels.expected import why_other_class
from mmvit_backbones.kernels.modes import COMPILE, is_static
from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.precision import without_autocast
from mmvit_backbones.layers.tokens import Size
from mmvit_backbones.layers.window_attention import WindowAttention

QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Region:
    """Part of a grid that windows of one size tile; all numbers in tokens."""

    top: int
    left: int
    height: int
    width: int
    window_height: int
    window_width: int

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return self.height * self.width

    @property
    def window_tokens(self) -> int:
        """Tokens of one window."""
        return self.window_height * self.window_width


@dataclass(frozen=True)
class Tiling:
    """The windows of a grid of tokens.

    Attributes:
        height: Rows of the grid.
        width: Columns of the grid.
        regions: Parts of the grid with windows of one size, row by row.
    """

    height: int
    width: int
    regions: tuple[Region, ...]

    @classmethod
    def of_grid(cls, height: int, width: int, window_size: int) -> Tiling:
        """Tile a grid from the top left, with smaller windows where whole ones do not fit."""
        regions = [
            Region(top, left, region_height, region_width, window_height, window_width)
            for top, region_height, window_height in _split_side(height, window_size)
            for left, region_width, window_width in _split_side(width, window_size)
        ]
        return cls(height, width, tuple(regions))

    @classmethod
    def whole(cls, height: int, width: int) -> Tiling:
        """Tile a grid by a single window."""
        return cls(height, width, (Region(0, 0, height, width, height, width),))

    @property
    def is_whole(self) -> bool:
        """Whether a single window tiles the grid."""
        return self.regions[0].window_tokens == self.height * self.width

    def view_windows(self, tokens: Tensor) -> list[Tensor]:
        """View tokens (B, N, C) as the windows of each region.

        Returns:
            Tokens (B, rows of windows, windows in a row, rows, columns, C).
        """
        channels = tokens.shape[2]
        rows = tokens.view(len(tokens), self.height, self.width * channels)
        return [
            rearrange(
                rows.narrow(1, region.top, region.height).narrow(
                    2, region.left * channels, region.width * channels
                ),
                'b (y i) (x j c) -> b y x i j c',
                i=region.window_height,
                j=region.window_width,
                c=channels,
            )
            for region in self.regions
        ]

    def split(self, rows: Tensor) -> list[Tensor]:
        """View rows (R, C), window by window, as the windows (w, n, C) of each region."""
        batch = len(rows) // (self.height * self.width)
        parts = rows.split([batch * region.num_tokens for region in self.regions])
        return [
            part.unflatten(0, (len(part) // region.window_tokens, region.window_tokens))
            for part, region in zip(parts, self.regions, strict=True)
        ]

    def split_qkv(self, rows: Tensor, num_heads: int) -> list[QKV]:
        """View rows (R, 3hd) as queries, keys and values (w, h, n, d) of each region."""
        parts = [
            rearrange(part, 'w n (three h d) -> three w h n d', three=3, h=num_heads)
            for part in self.split(rows)
        ]
        return [(q, k, v) for q, k, v in parts]

    def gather(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return tokens (B, N, C) as rows (R, C), window by window."""
        if self.is_whole:
            return tokens.flatten(0, 1).to(dtype)
        rows = tokens.new_empty(tokens.shape[:2].numel(), tokens.shape[2], dtype=dtype)
        for target, source in zip(self.split(rows), self.view_windows(tokens), strict=True):
            target.view(source.shape).copy_(source)
        return rows

    def scatter(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Undo `gather`."""
        tokens = rows.new_empty(
            len(rows) // (self.height * self.width),
            self.height * self.width,
            rows.shape[1],
            dtype=dtype,
        )
        for target, source in zip(self.view_windows(tokens), self.split(rows), strict=True):
            target.copy_(source.view(target.shape))
        return tokens


def _split_side(size: int, window_size: int) -> list[tuple[int, int, int]]:
    """Return (start, length, side of its windows) of each part of a side."""
    whole = size - size % window_size
    parts = [(0, whole, window_size), (whole, size - whole, size - whole)]
    return [part for part in parts if part[1] > 0]


def refusal(
    mode: str, x: Tensor, norm: nn.LayerNorm, layer: WindowAttention, size: Size
) -> str | None:
    """Return why the kernel does not serve a branch; None if it does."""
    if reason := why_other_class(nn.Linear, layer.qkv, layer.proj) or why_other_class(
        nn.Dropout, layer.attn_drop
    ):
        return reason
    if layer.padding != 'mask':
        return 'tokens of the padding take part in attention'
    if not is_static(*size):
        return 'the graph has dynamic shapes'
    if mode == COMPILE and x.device.type == 'cpu' and torch.is_grad_enabled():
        is_tiled = not any(side % layer.window_size for side in size)
        if compute_dtype(x).itemsize > 2 or not is_tiled:
            return 'on a CPU, graphs with gradients gain by whole windows in half precision only'
    return None


def run(
    mode: str,
    x: Tensor,
    norm: nn.LayerNorm,
    layer: WindowAttention,
    scale: Tensor | None,
    residual: bool,
    size: Size,
) -> Tensor:
    """Compute `scale * layer(norm(x), size)` of tokens (B, N, C), plus `x` if `residual`."""
    tiling = Tiling.of_grid(*size, layer.window_size)
    attended = [
        attention(q, k, v, layer.attn_drop)  # (w, h, n, d)
        for q, k, v in _norm_qkv(mode, x, norm, layer, tiling)
    ]
    if mode == COMPILE:
        out = layer.proj(_join_windows(attended, tiling))
    else:
        out = ProjectWindows.apply(tiling, layer.proj.weight, layer.proj.bias, *attended)
    out = layer.drop(out)
    out = out if scale is None else scale * out
    return x + out if residual else out


def _norm_qkv(
    mode: str, x: Tensor, norm: nn.LayerNorm, layer: WindowAttention, tiling: Tiling
) -> list[QKV]:
    """Return the queries, keys and values (w, h, n, d) of each region of tokens (B, N, C)."""
    qkv, num_heads = layer.qkv, layer.num_heads
    if mode == COMPILE:
        windows = [part.flatten(0, -2) for part in tiling.view_windows(norm(x))]
        return tiling.split_qkv(qkv(torch.cat(windows)), num_heads)
    outputs = _NormQKV.apply(
        x, norm.weight, norm.bias, norm.eps, qkv.weight, qkv.bias, num_heads, tiling
    )
    return [outputs[i : i + 3] for i in range(0, len(outputs), 3)]


def _join_windows(windows: Sequence[Tensor], tiling: Tiling) -> Tensor:
    """Join the windows (w, h, n, d) of each region to tokens (B, N, hd)."""
    strips: dict[int, list[Tensor]] = {}  # regions of the same rows
    for part, region in zip(windows, tiling.regions, strict=True):
        strip = rearrange(
            part,
            '(b y x) h (i j) d -> b (y i) (x j h d)',
            y=region.height // region.window_height,
            x=region.width // region.window_width,
            i=region.window_height,
        )
        strips.setdefault(region.top, []).append(strip)
    rows = torch.cat([torch.cat(strip, dim=2) for strip in strips.values()], dim=1)
    num_heads, _, head_dims = windows[0].shape[1:]
    return rows.view(len(rows), tiling.height * tiling.width, num_heads * head_dims)


class _NormQKV(torch.autograd.Function):
    """LayerNorm and `qkv` of all windows.

    q, k and v are separate outputs, so that their gradients go straight into one buffer. Autograd
    would concatenate them per region, then over regions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        num_heads: int,
        tiling: Tiling,
    ) -> tuple[Tensor, ...]:
        ctx.eps = eps
        ctx.num_heads = num_heads
        ctx.tiling = tiling
        ctx.dtype = dtype = compute_dtype(tokens)
        ctx.save_for_backward(tokens, norm_weight, norm_bias, weight)
        with without_autocast(tokens.device):
            normalized = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
            rows = tiling.gather(normalized, dtype)
            del normalized
            bias = None if bias is None else bias.to(dtype)
            qkv = operators.linear(rows, weight.to(dtype), bias)
        return sum(tiling.split_qkv(qkv, num_heads), ())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        tokens, norm_weight, norm_bias, weight = ctx.saved_tensors
        tiling, dtype = ctx.tiling, ctx.dtype
        need_x, need_norm_weight, need_norm_bias, _, need_weight, need_bias, *_ = (
            ctx.needs_input_grad
        )
        grad_rows = tokens.new_empty(tokens.shape[:2].numel(), len(weight), dtype=dtype)
        targets = sum(tiling.split_qkv(grad_rows, ctx.num_heads), ())
        for target, grad in zip(targets, grads, strict=True):
            target.copy_(grad)
        normalized, mean, rstd = operators.layer_norm(tokens, norm_weight, norm_bias, ctx.eps)
        grad_weight = grad_bias = None
        if need_weight:
            rows = tiling.gather(normalized, dtype)
            grad_weight = operators.weight_gradient(grad_rows, rows).to(weight.dtype).contiguous()
            del rows
        del normalized
        if need_bias:
            grad_bias = grad_rows.sum(0).to(weight.dtype)
        grad_normalized = operators.linear(grad_rows, weight.to(dtype).t())
        del grad_rows
        grad_tokens, grad_norm_weight, grad_norm_bias = operators.layer_norm_backward(
            tiling.scatter(grad_normalized, tokens.dtype),
            tokens,
            mean,
            rstd,
            norm_weight,
            norm_bias,
            (need_x, need_norm_weight, need_norm_bias),
        )
        return (
            grad_tokens,
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_weight,
            grad_bias,
            None,
            None,
        )


class ProjectWindows(torch.autograd.Function):
    """`proj` of the windows (w, h, n, d) of all regions, joined to tokens (B, N, C).

    Before they are joined, so that fused attention and this save one copy of the windows.
    """

    @staticmethod
    def forward(
        ctx: Any, tiling: Tiling, weight: Tensor, bias: Tensor | None, *windows: Tensor
    ) -> Tensor:
        dtype = compute_dtype(windows[0])
        ctx.tiling, ctx.dtype = tiling, dtype
        ctx.save_for_backward(weight, *windows)
        num_windows, _, window_tokens, _ = windows[0].shape
        batch = num_windows * window_tokens // tiling.regions[0].num_tokens
        shape = batch, tiling.height * tiling.width, len(weight)
        bias = None if bias is None else bias.to(dtype)
        with without_autocast(weight.device):
            if tiling.is_whole:
                rows = _to_rows(windows[0], dtype)
                return operators.linear(rows, weight.to(dtype), bias).view(shape)
            tokens = windows[0].new_empty(shape, dtype=dtype)
            for target, part in zip(tiling.view_windows(tokens), windows, strict=True):
                projected = operators.linear(_to_rows(part, dtype), weight.to(dtype), bias)
                target.copy_(projected.view(target.shape))
        return tokens

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        weight, *windows = ctx.saved_tensors
        _, need_weight, need_bias, *_ = ctx.needs_input_grad
        grad_rows = ctx.tiling.gather(grad.contiguous(), ctx.dtype)
        grad_weight = grad_bias = None
        if need_bias:
            grad_bias = grad_rows.sum(0).to(weight.dtype)
        grad_windows = []
        with without_autocast(grad.device):
            for grad_part, part in zip(ctx.tiling.split(grad_rows), windows, strict=True):
                rows, grad_part = _to_rows(part, ctx.dtype), grad_part.flatten(0, 1)
                if need_weight:
                    product = operators.weight_gradient(grad_part, rows).to(weight.dtype)
                    grad_weight = product if grad_weight is None else grad_weight.add_(product)
                grad_part = operators.linear(grad_part, weight.to(ctx.dtype).t())
                grad_part = grad_part.view(*part.transpose(1, 2).shape)  # (w, n, h, d)
                grad_windows.append(grad_part.transpose(1, 2).to(part.dtype))
        return None, grad_weight, grad_bias, *grad_windows


def _to_rows(windows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return windows (w, h, n, d) as rows (wn, hd); a view of what fused attention returns."""
    return rearrange(windows, 'w h n d -> (w n) (h d)').to(dtype)
