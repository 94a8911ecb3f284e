"""Twins-SVT: locally-grouped attention and global subsampled attention in turn.

Paper: Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers",
https://arxiv.org/abs/2104.13840. Structures: the authors' (https://github.com/Meituan-AutoML/Twins)
and the one of the package vit-pytorch, both from this file.

Legend: B batch, H x W pixels of an image or N = H x W tokens of a grid, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmvit_backbones.backbones.base import (
    Backbone,
    check_out_indices,
    check_rate,
    resolve_arch,
)
from mmvit_backbones.layers.init import init_conv_by_fan_out, init_linear
from mmvit_backbones.layers.mlp import MLP
from mmvit_backbones.layers.patch_embed import PatchEmbed
from mmvit_backbones.layers.position import PositionEncodingGenerator
from mmvit_backbones.layers.seam import replaceable
from mmvit_backbones.layers.subsampled_attention import SubsampledAttention
from mmvit_backbones.layers.tokens import Size, as_contiguous, to_map
from mmvit_backbones.layers.variant import PAPER, VIT_PYTORCH, check_variant
from mmvit_backbones.layers.window_attention import WindowAttention
from mmvit_backbones.registry import MODELS

LOCAL, GLOBAL = 'L', 'G'


@dataclass(frozen=True)
class TwinsSVTArch:
    """Settings of one Twins-SVT, one entry per stage where it is a tuple.

    Attributes:
        embed_dims: Channels.
        stages: Blocks as a string: `L` attends in windows (LSA), `G` globally (GSA).
        num_heads: Attention heads.
        head_dims: Channels per head.
        sr_ratios: Subsampling of keys and values in `G` blocks.
        patch_sizes: Downsampling at the start of a stage.
        window_size: Side of a window in tokens.
        mlp_ratio: Width of the MLP over `embed_dims`.
        peg_after: Block (0-based) after which the position encoding generator stands.
        variant: `'paper'`: query, key and value projections with a bias; keys and values from a
            strided convolution, a norm and a linear layer. `'vit-pytorch'`: no such biases; keys
            and values from one strided convolution; patches normalized before the projection too.
        paper_init: Initialize as the authors do; else by PyTorch's defaults. Without effect in
            variant `'vit-pytorch'`, which has PyTorch's defaults.
    """

    embed_dims: tuple[int, ...]
    stages: tuple[str, ...]
    num_heads: tuple[int, ...]
    head_dims: int = 32
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    patch_sizes: tuple[int, ...] = (4, 2, 2, 2)
    window_size: int = 7
    mlp_ratio: int = 4
    peg_after: tuple[int, ...] = (0, 0, 0, 0)
    variant: str = PAPER
    paper_init: bool = True

    def __post_init__(self) -> None:
        check_variant(self.variant)
        per_stage = ('embed_dims', 'stages', 'num_heads', 'sr_ratios', 'patch_sizes', 'peg_after')
        lengths = {name: len(getattr(self, name)) for name in per_stage}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'arch: per-stage settings differ in length: {lengths}')
        for blocks, peg_after in zip(self.stages, self.peg_after, strict=True):
            if not blocks or set(blocks) - {LOCAL, GLOBAL}:
                raise ValueError(f'arch: a stage is a string of L and G blocks, got {blocks!r}')
            if not 0 <= peg_after < len(blocks):
                raise ValueError(
                    f'arch: peg_after must name one of the {len(blocks)} blocks of stage '
                    f'{blocks!r}, got {peg_after}'
                )

    @property
    def is_paper(self) -> bool:
        """Whether the structure is that of the authors."""
        return self.variant == PAPER

    @property
    def norm_eps(self) -> float:
        """Epsilon of the norms in blocks and on outputs; others have PyTorch's default, 1e-5."""
        return 1e-6 if self.is_paper else 1e-5


# Paper: Table 10, with the block order of the authors' code (stage 4 also alternates LSA and GSA).
ARCHS = {
    'small': TwinsSVTArch((64, 128, 256, 512), ('LG', 'LG', 'LG' * 5, 'LG' * 2), (2, 4, 8, 16)),
    'base': TwinsSVTArch((96, 192, 384, 768), ('LG', 'LG', 'LG' * 9, 'LG'), (3, 6, 12, 24)),
    'large': TwinsSVTArch((128, 256, 512, 1024), ('LG', 'LG', 'LG' * 9, 'LG'), (4, 8, 16, 32)),
    # The defaults of vit_pytorch.twins_svt.TwinsSVT.
    'vit-pytorch': TwinsSVTArch(
        embed_dims=(64, 128, 256, 512),
        stages=('LG' * 2, 'LG' * 2, 'LG' * 6, 'G' * 5),
        num_heads=(8, 8, 8, 8),
        head_dims=64,
        sr_ratios=(7, 7, 7, 7),
        peg_after=(1, 1, 1, 0),
        variant=VIT_PYTORCH,
    ),
}


class TwinsSVTBlock(nn.Module):
    """Pre-norm transformer block.

    Args:
        dims: Channels.
        attn: Attention between tokens (B, N, C) of a grid.
        mlp_ratio: Width of the MLP over `dims`.
        norm_eps: Epsilon of both norms.
        drop_rate: Dropout probability in the MLP.
        drop_path_rate: Probability that a sample skips a branch while training.
    """

    def __init__(
        self,
        dims: int,
        attn: WindowAttention | SubsampledAttention,
        mlp_ratio: int,
        norm_eps: float,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dims, eps=norm_eps)
        self.mlp = MLP(dims, dims * mlp_ratio, drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform tokens (B, N, C) of a grid of `size` (H, W)."""
        x = self.attend(x, size)
        return self.feed_forward(x)

    @replaceable
    def attend(self, x: Tensor, size: Size) -> Tensor:
        """Add the attention branch to tokens (B, N, C)."""
        return x + self.drop_path(self.attn(self.norm1(x), size))

    @replaceable
    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the MLP branch to tokens (B, N, C)."""
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def fold(self) -> None:
        """Move the affine part of the norms into the layers after them, if those are ours."""
        if isinstance(self.attn, (WindowAttention, SubsampledAttention)):
            self.attn.fold_norm(self.norm1)
        if isinstance(self.mlp, MLP):
            self.mlp.fold_norm(self.norm2)


@MODELS.register_module()
class TwinsSVT(Backbone):
    """Twins-SVT as a backbone with a four-level pyramid (https://arxiv.org/abs/2104.13840).

    Only the stages up to the last chosen one are built, so every parameter gets a gradient.

    Args:
        arch: `'small'`, `'base'`, `'large'` (the paper's), `'vit-pytorch'` (that package's
            structure) or a dict of `TwinsSVTArch`'s fields.
        in_channels: Channels of the image.
        out_indices: Stages to return, strictly increasing.
        out_norm: Normalize the feature map at the end of each stage, also as the input of the next
            stage, as the authors do for detection and segmentation. The ImageNet weights lack
            these norms. None means True in variant `'paper'` and False in `'vit-pytorch'`, which
            has no such norms.
        window_padding: What happens in windows that reach over the border: `'mask'` (only tokens
            of the map take part) or `'zero'` (zero tokens take part, as in the authors' detection
            code).
        drop_rate: Dropout probability of tokens.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Probability that a sample skips a branch of the last block; it grows
            linearly from 0 in the first.
        frozen_stages: -1 freezes nothing, 0 the first patch embedding, k the first k stages with
            their output norms.
        with_cp: Gradient checkpointing of each block.
        init_cfg: What MMEngine's `init_weights()` shall do to the initialised model.

    Raises:
        ValueError: If an argument is out of its range.

    Shape:
        Input (B, in_channels, H, W), at least 32 px a side. Output: a tuple with a feature map
        (B, C_i, ceil(H / s_i), ceil(W / s_i)) for each of `out_indices`, with
        C_i in `out_channels` and s_i in `out_strides`.
    """

    no_weight_decay_keywords = ('pos_block',)

    def __init__(
        self,
        arch: str | Mapping[str, Any] | TwinsSVTArch = 'small',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: bool | None = None,
        window_padding: str = 'mask',
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        resolved = resolve_arch(arch, ARCHS)
        chosen = check_out_indices(out_indices, len(resolved.stages), 'stages')
        num_stages = chosen[-1] + 1
        super().__init__(
            in_channels,
            frozen_stages=frozen_stages,
            max_frozen_stages=num_stages,
            norm_eval=False,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.arch = resolved
        out_norm = resolved.is_paper if out_norm is None else out_norm
        self.out_indices = chosen
        check_rate('drop_rate', drop_rate)
        check_rate('attn_drop_rate', attn_drop_rate)
        check_rate('drop_path_rate', drop_path_rate)
        strides = [prod(self.arch.patch_sizes[: i + 1]) for i in range(num_stages)]
        self.out_channels = tuple(self.arch.embed_dims[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)

        last_block = max(sum(map(len, self.arch.stages)) - 1, 1)
        self.patch_embeds = nn.ModuleList()
        self.blocks = nn.ModuleList()
        self.pos_block = nn.ModuleList()
        for i in range(num_stages):
            dims = self.arch.embed_dims[i]
            in_dims = self.arch.embed_dims[i - 1] if i > 0 else in_channels
            self.patch_embeds.append(
                PatchEmbed(in_dims, dims, self.arch.patch_sizes[i], not self.arch.is_paper)
            )
            before = sum(map(len, self.arch.stages[:i]))
            blocks = [
                TwinsSVTBlock(
                    dims,
                    self._make_attention(kind, i, window_padding, attn_drop_rate, drop_rate),
                    self.arch.mlp_ratio,
                    self.arch.norm_eps,
                    drop_rate,
                    drop_path_rate * (before + j) / last_block,
                )
                for j, kind in enumerate(self.arch.stages[i])
            ]
            self.blocks.append(nn.ModuleList(blocks))
            self.pos_block.append(PositionEncodingGenerator(dims))
        self.drop = nn.Dropout(drop_rate)
        self.norm_list = nn.ModuleList(
            nn.LayerNorm(self.arch.embed_dims[i], eps=self.arch.norm_eps)
            if out_norm
            else nn.Identity()
            for i in range(num_stages)
        )
        if self.arch.is_paper and self.arch.paper_init:
            init_linear(self)
            init_conv_by_fan_out(self)
        self._freeze()

    def _make_attention(
        self, kind: str, stage: int, window_padding: str, attn_drop_rate: float, drop_rate: float
    ) -> WindowAttention | SubsampledAttention:
        arch = self.arch
        if kind == LOCAL:
            return WindowAttention(
                arch.embed_dims[stage],
                arch.num_heads[stage],
                arch.head_dims,
                arch.window_size,
                qkv_bias=arch.is_paper,
                padding=window_padding,
                attn_drop_rate=attn_drop_rate,
                drop_rate=drop_rate,
            )
        return SubsampledAttention(
            arch.embed_dims[stage],
            arch.num_heads[stage],
            arch.head_dims,
            arch.sr_ratios[stage],
            qkv_bias=arch.is_paper,
            fused_reduction=not arch.is_paper,
            attn_drop_rate=attn_drop_rate,
            drop_rate=drop_rate,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen feature maps of a batch of images."""
        self._check_input(x)
        maps = []
        for i, blocks in enumerate(self.blocks):
            x, size = self._embed(self.patch_embeds[i], x)  # (B, N, C)
            x = self.drop(x)
            for j, block in enumerate(cast(nn.ModuleList, blocks)):
                x = self._run_block(block, x, size)
                if j == self.arch.peg_after[i]:
                    x = self.pos_block[i](x, size)
            x = to_map(self.norm_list[i](x), size)  # (B, C, H, W)
            if i in self.out_indices:
                x = as_contiguous(x)  # also the input of the next stage: training saves one map
                maps.append(x)
        return tuple(maps)

    @property
    def num_layers(self) -> int:
        return sum(map(len, self.arch.stages[: len(self.blocks)]))

    def _frozen_modules(self) -> Iterable[nn.Module]:
        if self.frozen_stages >= 0:
            yield self.patch_embeds[0]
        for i in range(self.frozen_stages):
            yield from (self.patch_embeds[i], self.blocks[i], self.pos_block[i], self.norm_list[i])

    def _block_of(self, param_name: str) -> int:
        kind, *rest = param_name.split('.')
        if kind == 'norm_list':
            return self.num_layers
        stage = int(rest[0])
        first = sum(map(len, self.arch.stages[:stage]))
        if kind == 'blocks':
            return first + int(rest[1])
        if kind == 'pos_block':
            return first + self.arch.peg_after[stage]
        return first if stage > 0 else -1  # patch_embeds
