"""XCiT: attention between channels, linear in the number of tokens.

Paper: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers",
https://arxiv.org/abs/2106.09681. Structures: the authors' (https://github.com/facebookresearch/xcit)
and the one of the package vit-pytorch, both from this file.

Legend: B batch, H x W pixels of an image or N = H x W tokens of a grid, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import e
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmvit_backbones.backbones.base import (
    Backbone,
    check_out_indices,
    check_rate,
    resolve_arch,
)
from mmvit_backbones.layers.conv_stem import ConvStem
from mmvit_backbones.layers.cross_covariance_attention import CrossCovarianceAttention
from mmvit_backbones.layers.folding import Scale
from mmvit_backbones.layers.init import init_linear
from mmvit_backbones.layers.layer_scale import initial_layer_scale
from mmvit_backbones.layers.local_patch_interaction import LocalPatchInteraction
from mmvit_backbones.layers.mlp import MLP
from mmvit_backbones.layers.patch_embed import PatchEmbed
from mmvit_backbones.layers.position import FourierPosition, LearnedPosition
from mmvit_backbones.layers.seam import replaceable
from mmvit_backbones.layers.tokens import Size, as_contiguous, ceil_div, crop, to_map
from mmvit_backbones.layers.variant import PAPER, check_variant
from mmvit_backbones.necks.pyramid import PYRAMID_STRIDES, DeconvPoolPyramid
from mmvit_backbones.registry import MODELS


@dataclass(frozen=True)
class XCiTArch:
    """Settings of one XCiT.

    Attributes:
        embed_dims: Channels.
        depth: Cross-covariance blocks.
        num_heads: Attention heads.
        layer_scale: Initial factor of all residual branches; None for the rule by layer of
            `mmvit_backbones.layers.layer_scale`.
        tokens_norm: Normalize all tokens before the MLPs of class attention (`'paper'` only).
        head_dims: Channels per head; `embed_dims / num_heads` by default.
        mlp_dims: Width of the MLPs; 4 * `embed_dims` by default.
        cls_layers: Class-attention layers of the pooling neck; a backbone has none.
        variant: Which structure. `'paper'`: convolutional stem, Fourier position, biased query,
            key and value projections, norm after activation between the local convolutions.
            `'vit-pytorch'`: normalized patches, projected; learned position; no such biases;
            norm before activation.
        grid_size: Rows and columns of the learned position, (image size / patch size) in that
            package; `'vit-pytorch'` only, and required there.
        lpi_kernel_size: Side of the kernels of the local patch interaction.

    Raises:
        ValueError: If settings are out of range or contradict each other.
    """

    embed_dims: int
    depth: int
    num_heads: int
    layer_scale: float | None = None
    tokens_norm: bool = True
    head_dims: int | None = None
    mlp_dims: int | None = None
    cls_layers: int = 2
    variant: str = 'paper'
    grid_size: tuple[int, int] | None = None
    lpi_kernel_size: int = 3

    def __post_init__(self) -> None:
        for name in ('embed_dims', 'depth', 'num_heads', 'cls_layers'):
            if getattr(self, name) < 1:
                raise ValueError(f'arch: {name} must be at least 1, got {getattr(self, name)}')
        check_variant(self.variant)
        if self.head_dims is None and self.embed_dims % self.num_heads:
            raise ValueError(
                f'arch: num_heads must divide embed_dims {self.embed_dims} where head_dims is not '
                f'given, got {self.num_heads}'
            )
        if (self.grid_size is None) != self.is_paper:
            raise ValueError(
                "arch: grid_size (rows, columns) is required with variant 'vit-pytorch' and has no "
                f'meaning with another, got {self.grid_size} with {self.variant!r}'
            )

    @property
    def is_paper(self) -> bool:
        """Whether the structure is that of the authors."""
        return self.variant == PAPER

    @property
    def class_attention(self) -> dict[str, Any]:
        """Keyword arguments of the `ClassAttentionPooling` that belongs to this architecture."""
        return dict(
            in_channels=self.embed_dims,
            num_heads=self.num_heads,
            head_dims=self.head_dims,
            mlp_dims=self.mlp_dims,
            num_layers=self.cls_layers,
            layer_scale=self.layer_scale,
            tokens_norm=self.tokens_norm,
            variant=self.variant,
        )


# Paper: Table 1; LayerScale and tokens_norm as in the authors' code.
ARCHS = {
    'nano-12': XCiTArch(128, 12, 4, layer_scale=1.0, tokens_norm=False),
    'tiny-12': XCiTArch(192, 12, 4, layer_scale=1.0),
    'tiny-24': XCiTArch(192, 24, 4, layer_scale=1e-5),
    'small-12': XCiTArch(384, 12, 8, layer_scale=1.0),
    'small-24': XCiTArch(384, 24, 8, layer_scale=1e-5),
    'medium-24': XCiTArch(512, 24, 8, layer_scale=1e-5),
    'large-24': XCiTArch(768, 24, 16, layer_scale=1e-5),
    # Of adversarially robust training (Debenedetti et al., https://arxiv.org/abs/2209.07399).
    'medium-12': XCiTArch(512, 12, 8, layer_scale=1.0),
    'large-12': XCiTArch(768, 12, 16, layer_scale=1.0),
}


def default_out_indices(depth: int) -> tuple[int, ...]:
    """Return the blocks that end a third, a half, two thirds and the whole of the depth.

    At depths 12 and 24 these are the authors' choice for detection and segmentation.

    Raises:
        ValueError: If four such blocks do not exist.
    """
    if depth < 5:
        raise ValueError(f'out_indices must be given for a depth below 5, got depth {depth}')
    return depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1


class XCiTBlock(nn.Module):
    """Cross-covariance attention, local patch interaction and MLP, each scaled by channel.

    Three branches in turn, each `x + drop_path(gamma * layer(norm(x)))` on tokens (B, N, C):
    `attend` (norm1, gamma1), `interact` (norm3, gamma3), `feed_forward` (norm2, gamma2). The order
    is that of the authors' code; the paper's pseudo-code has the last two swapped. The names are
    those of the authors' weights.

    Args:
        arch: Sizes and structure.
        layer_scale: Initial factor of the branches.
        norm_cfg: Norm between the local convolutions.
        drop_rate: Dropout probability of attention's output and in the MLP.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Probability that a sample skips a branch while training.
    """

    gamma1: Scale  # (C), or 1.0 once it is folded
    gamma2: Scale
    gamma3: Scale

    def __init__(
        self,
        arch: XCiTArch,
        layer_scale: float,
        norm_cfg: Mapping[str, Any],
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        dims = arch.embed_dims
        norm_eps = 1e-6 if arch.is_paper else 1e-5
        self.norm1 = nn.LayerNorm(dims, eps=norm_eps)
        self.attn = CrossCovarianceAttention(
            dims,
            arch.num_heads,
            arch.head_dims or dims // arch.num_heads,
            qkv_bias=arch.is_paper,
            # vit-pytorch learns the logarithm of this factor, and starts with log(e) = 1.
            initial_temperature=1.0 if arch.is_paper else e,
            attn_drop_rate=attn_drop_rate,
            drop_rate=drop_rate,
        )
        self.norm3 = nn.LayerNorm(dims, eps=norm_eps)
        self.local_mp = LocalPatchInteraction(  # the name in the authors' weights
            dims, norm_cfg, norm_first=not arch.is_paper, kernel_size=arch.lpi_kernel_size
        )
        self.norm2 = nn.LayerNorm(dims, eps=norm_eps)
        self.mlp = MLP(dims, arch.mlp_dims or 4 * dims, drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        self.gamma1 = nn.Parameter(torch.full((dims,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((dims,), layer_scale))
        self.gamma3 = nn.Parameter(torch.full((dims,), layer_scale))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform tokens (B, N, C) of a grid of `size` (H, W)."""
        x = self.attend(x)
        x = self.interact(x, size)
        return self.feed_forward(x)

    @replaceable
    def attend(self, x: Tensor) -> Tensor:
        """Add the branch of cross-covariance attention to tokens (B, N, C)."""
        return x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))

    @replaceable
    def interact(self, x: Tensor, size: Size) -> Tensor:
        """Add the branch of local patch interaction to tokens (B, N, C)."""
        return x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), size))

    @replaceable
    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the MLP branch to tokens (B, N, C)."""
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))

    def fold(self) -> None:
        """Move `norm1`, `norm2` and LayerScale into the layers of their branches.

        `norm3` stays: the convolution after it pads with zeros, which a bias would not reach. So do
        the norm and scale of a layer that is not of this package.
        """
        if isinstance(self.attn, CrossCovarianceAttention):
            self.attn.fold_norm(self.norm1)
        if isinstance(self.mlp, MLP):
            self.mlp.fold_norm(self.norm2)
        branches = {'gamma1': self.attn, 'gamma2': self.mlp, 'gamma3': self.local_mp}
        for name, layer in branches.items():
            if isinstance(layer, (CrossCovarianceAttention, MLP, LocalPatchInteraction)):
                scale = layer.fold_scale(getattr(self, name))
                delattr(self, name)
                setattr(self, name, scale)


@MODELS.register_module()
class XCiT(Backbone):
    """XCiT as a backbone, with a four-level pyramid or single scale (arXiv 2106.09681).

    Only the blocks up to the last chosen one are built, and no class token or class attention, so
    every parameter gets a gradient.

    Args:
        arch: A name in `ARCHS` (the paper's sizes) or a dict of `XCiTArch`'s fields;
            `dict(variant='vit-pytorch', ...)` gives the structure of that package.
        patch_size: Stride of the tokens in pixels: 8 or 16; without a pyramid also 4, or with
            variant `'vit-pytorch'` anything from 1.
        in_channels: Channels of the image.
        out_indices: Blocks to return, strictly increasing; four with a pyramid. By default those
            of `default_out_indices`: (3, 5, 7, 11) at depth 12, (7, 11, 15, 23) at 24.
        pyramid: Resample the feature maps to strides 4, 8, 16, 32 with a `DeconvPoolPyramid`;
            else all have stride `patch_size`.
        norm_cfg: Norm in the convolutional stem, the blocks and the pyramid, such as
            `dict(type='SyncBN')`. The paper's weights are those of BatchNorm.
        drop_rate: Dropout probability of tokens.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Probability that a sample skips a branch, the same in all blocks.
        frozen_stages: -1 freezes nothing, 0 the stem and the position, k the first k blocks too.
        norm_eval: Keep BatchNorm layers in evaluation mode while training.
        with_cp: Gradient checkpointing of each block.
        init_cfg: What MMEngine's `init_weights()` shall do to the initialised model.

    Raises:
        ValueError: If an argument is out of its range.

    Shape:
        Input (B, in_channels, H, W), at least 32 px a side. Output: a tuple with a feature map
        (B, C, ceil(H / s_i), ceil(W / s_i)) for each of `out_indices`, with C in `out_channels`
        and s_i in `out_strides`.
    """

    no_weight_decay_keywords = ('temperature', 'pos_embed', 'cls_token')

    def __init__(
        self,
        arch: str | Mapping[str, Any] | XCiTArch = 'small-12',
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        pyramid: bool = True,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        resolved = resolve_arch(arch, ARCHS)
        if out_indices is None:
            out_indices = default_out_indices(resolved.depth)
        chosen = check_out_indices(out_indices, resolved.depth, 'blocks')
        super().__init__(
            in_channels,
            frozen_stages=frozen_stages,
            max_frozen_stages=chosen[-1] + 1,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        check_rate('attn_drop_rate', attn_drop_rate)
        check_rate('drop_path_rate', drop_path_rate)
        if patch_size < 1:
            raise ValueError(f'patch_size must be at least 1, got {patch_size}')
        if pyramid and len(chosen) != len(PYRAMID_STRIDES):
            raise ValueError(
                f'out_indices must name {len(PYRAMID_STRIDES)} blocks with a pyramid, got {chosen}'
            )
        if pyramid and patch_size not in (8, 16):
            raise ValueError(f'patch_size must be 8 or 16 with a pyramid, got {patch_size}')
        self.arch = resolved
        self.patch_size = patch_size
        self.out_indices = chosen
        self.out_channels = (resolved.embed_dims,) * len(chosen)
        self.out_strides = PYRAMID_STRIDES if pyramid else (patch_size,) * len(chosen)

        dims = resolved.embed_dims
        self.patch_embed: nn.Module
        self.pos_embed: nn.Module
        if resolved.is_paper:
            self.patch_embed = ConvStem(in_channels, dims, patch_size, norm_cfg)
            self.pos_embed = FourierPosition(dims)
        else:
            self.patch_embed = PatchEmbed(in_channels, dims, patch_size, pre_norm=True)
            assert resolved.grid_size is not None
            self.pos_embed = LearnedPosition(dims, resolved.grid_size)
        self.drop = nn.Dropout(check_rate('drop_rate', drop_rate))
        self.blocks = nn.ModuleList(
            XCiTBlock(
                resolved,
                initial_layer_scale(resolved.layer_scale, i + 1),
                norm_cfg,
                drop_rate,
                attn_drop_rate,
                drop_path_rate,
            )
            for i in range(chosen[-1] + 1)
        )
        self.pyramid = DeconvPoolPyramid(dims, patch_size, norm_cfg) if pyramid else None
        if resolved.is_paper:
            init_linear(self)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen feature maps of a batch of images."""
        self._check_input(x)
        height, width = x.shape[2:]
        x, size = self._embed(self.patch_embed, x)  # (B, N, C)
        x = self.drop(self.pos_embed(x, size))
        maps = []
        for i, block in enumerate(self.blocks):
            x = self._run_block(block, x, size)
            if i in self.out_indices:
                feature_map = to_map(x, size)
                maps.append(as_contiguous(feature_map) if self.pyramid is None else feature_map)
        if self.pyramid is None:
            return tuple(maps)
        # Tokens cover whole patches, so finer maps can reach over the image's border.
        return tuple(
            crop(feature_map, (ceil_div(height, stride), ceil_div(width, stride)))
            for feature_map, stride in zip(self.pyramid(maps), self.out_strides, strict=True)
        )

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def _frozen_modules(self) -> Iterable[nn.Module]:
        if self.frozen_stages >= 0:
            yield from (self.patch_embed, self.pos_embed)
        yield from self.blocks[: max(self.frozen_stages, 0)]

    def _block_of(self, param_name: str) -> int:
        kind, *rest = param_name.split('.')
        if kind == 'blocks':
            return int(rest[0])
        return self.num_layers if kind == 'pyramid' else -1  # patch_embed, pos_embed
