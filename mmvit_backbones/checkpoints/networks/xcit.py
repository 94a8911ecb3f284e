"""XCiT: how each source names its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmvit_backbones.backbones.xcit import ARCHS, XCiT, XCiTArch
from mmvit_backbones.checkpoints.adapting import adapt_stem, resize_position
from mmvit_backbones.checkpoints.description import (
    HEAD,
    OURS,
    Dialect,
    Network,
    OptionalPart,
)
from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.networks.sources import MMCV_FFN
from mmvit_backbones.checkpoints.networks.xcit_files import FILES
from mmvit_backbones.checkpoints.rules import Rule, StateDict, Step, find, joined, matches, under
from mmvit_backbones.layers.variant import PAPER, VIT_PYTORCH
from mmvit_backbones.necks import ClassAttentionPooling

PATCH_SIZES = (8, 16)

_BLOCK = (
    *((name, name) for name in ('gamma1', 'gamma2', 'gamma3', 'norm1.*', 'norm2.*', 'norm3.*')),
    *((f'attn.{name}',) * 2 for name in ('temperature', 'qkv.*', 'proj.*')),
)
_CLASS_BLOCK = tuple(
    (name, name) for name in ('gamma1', 'gamma2', 'norm1.*', 'norm2.*', 'attn.proj.*')
)
_MLP: tuple[Rule, ...] = (('mlp.fc1.*', 'mlp.fc1.*'), ('mlp.fc2.*', 'mlp.fc2.*'))
_QKV: tuple[Rule, ...] = (('attn.qkv.*', 'attn.qkv.*'),)
_Q_K_V: tuple[Rule, ...] = tuple((f'attn.{part}.*',) * 2 for part in 'qkv')
_JOIN_Q_K_V = joined('neck.cls_attn_blocks.#.attn', {'q': 1, 'k': 1, 'v': 1}, 'qkv')


def _paper(position: str, qkv: tuple[Rule, ...], pyramid: str | None) -> tuple[Rule, ...]:
    """What the authors and timm name alike."""
    local = tuple((f'local_mp.{name}.*',) * 2 for name in ('conv1', 'bn', 'conv2'))
    return (
        ('patch_embed.proj.#.#.*', 'backbone.patch_embed.proj.#.#.*'),
        (f'{position}.token_projection.*', 'backbone.pos_embed.token_projection.*'),
        *under('blocks.#.', 'backbone.blocks.#.', (*_BLOCK, *local, *_MLP)),
        (pyramid, 'backbone.pyramid.fpn#.#.*'),
        ('cls_token', 'neck.cls_token'),
        *under('cls_attn_blocks.#.', 'neck.cls_attn_blocks.#.', (*_CLASS_BLOCK, *qkv, *_MLP)),
        ('norm.*', 'neck.norm.*'),
        ('head.*', 'head.fc.*'),
    )


# The authors' three copies: classification has class attention, the dense ones the pyramid.
_OFFICIAL = _paper('pos_embeder', _QKV, 'fpn#.#.*')
_TIMM = _paper('pos_embed', _Q_K_V, None)
_MMPRETRAIN: tuple[Rule, ...] = (
    *(
        (f'patch_embed.proj.{j}.{name}.*', f'backbone.patch_embed.proj.{2 * j}.{i}.*')
        for j in range(4)
        for i, name in enumerate(('conv', 'bn'))
    ),
    ('pos_embed.token_projection.conv.*', 'backbone.pos_embed.token_projection.*'),
    *under(
        'xca_layers.#.',
        'backbone.blocks.#.',
        (
            *_BLOCK,
            *MMCV_FFN,
            ('local_mp.conv1.conv.*', 'local_mp.conv1.*'),
            ('local_mp.conv1.bn.*', 'local_mp.bn.*'),
            ('local_mp.conv2.conv.*', 'local_mp.conv2.*'),
        ),
    ),
    (None, 'backbone.pyramid.fpn#.#.*'),
    ('cls_token', 'neck.cls_token'),
    *under('ca_layers.#.', 'neck.cls_attn_blocks.#.', (*_CLASS_BLOCK, *_Q_K_V, *MMCV_FFN)),
    ('norm.*', 'neck.norm.*'),
    ('head.fc.*', 'head.fc.*'),
)
_VIT_PYTORCH: tuple[Rule, ...] = (
    ('to_patch_embedding.1.*', 'backbone.patch_embed.pre_norm.*'),
    ('to_patch_embedding.2.*', 'backbone.patch_embed.proj.*'),
    ('to_patch_embedding.3.*', 'backbone.patch_embed.norm.*'),
    ('pos_embedding', 'backbone.pos_embed.table'),
    *under(
        'xcit_transformer.layers.#.',
        'backbone.blocks.#.',
        (
            ('0.scale', 'gamma1'),
            ('0.fn.norm.*', 'norm1.*'),
            ('0.fn.to_qkv.*', 'attn.qkv.*'),
            ('0.fn.temperature', 'attn.temperature'),
            ('0.fn.to_out.0.*', 'attn.proj.*'),
            ('1.scale', 'gamma3'),
            ('1.fn.net.0.*', 'norm3.*'),
            ('1.fn.net.2.*', 'local_mp.conv1.*'),
            ('1.fn.net.3.*', 'local_mp.bn.*'),
            ('1.fn.net.5.*', 'local_mp.conv2.*'),
            ('2.scale', 'gamma2'),
            ('2.fn.net.0.*', 'norm2.*'),
            ('2.fn.net.1.*', 'mlp.fc1.*'),
            ('2.fn.net.4.*', 'mlp.fc2.*'),
        ),
    ),
    (None, 'backbone.pyramid.fpn#.#.*'),
    ('final_norm.*', 'neck.patch_norm.*'),
    ('cls_token', 'neck.cls_token'),
    *under(
        'cls_transformer.layers.#.',
        'neck.cls_attn_blocks.#.',
        (
            ('0.scale', 'gamma1'),
            ('0.fn.norm.*', 'norm1.*'),
            ('0.fn.to_q.*', 'attn.q.*'),
            ('0.fn.to_kv.*', 'attn.kv.*'),
            ('0.fn.to_out.0.*', 'attn.proj.*'),
            ('1.scale', 'gamma2'),
            ('1.fn.net.0.*', 'norm2.*'),
            ('1.fn.net.1.*', 'mlp.fc1.*'),
            ('1.fn.net.4.*', 'mlp.fc2.*'),
        ),
    ),
    ('mlp_head.0.*', 'neck.norm.*'),
    ('mlp_head.1.*', 'head.fc.*'),
)
_STEM_NORM = 'backbone.patch_embed.pre_norm.*'
_STEM = 'backbone.patch_embed.proj.weight'
_TABLE = 'backbone.pos_embed.table'
_TEMPERATURE = 'backbone.blocks.#.attn.temperature'
_CLS_TOKEN = 'neck.cls_token'


def _read_vit_pytorch(weights: StateDict) -> StateDict:
    """Change the order in a patch from (row, column, channel), and logarithms of temperatures."""
    ours = dict(weights)
    for key, value in weights.items():
        if matches(_STEM_NORM, key) or key == _STEM:
            side = round((value.shape[-1] / 3) ** 0.5)
            patches = value.reshape(*value.shape[:-1], side, side, 3).movedim(-1, -3)
            ours[key] = (patches if key == _STEM else patches.flatten()).contiguous()
        elif key == _TABLE:
            side = round(value.shape[1] ** 0.5)
            if side * side != value.shape[1]:
                raise CheckpointError(
                    f'pos_embedding must have a square number of positions, got {value.shape[1]}'
                )
            ours[key] = value.reshape(1, side, side, -1)
        elif key == _CLS_TOKEN:
            ours[key] = value.reshape(1, 1, -1)
        elif matches(_TEMPERATURE, key):
            ours[key] = value.exp()
    return ours


def _write_vit_pytorch(weights: StateDict) -> StateDict:
    theirs = dict(weights)
    for key, value in weights.items():
        if key == _STEM:
            theirs[key] = value.movedim(1, -1).flatten(1).contiguous()
        elif matches(_STEM_NORM, key) and _STEM in weights:
            patches = value.reshape(weights[_STEM].shape[1:])  # (C, p, p)
            theirs[key] = patches.movedim(0, -1).flatten().contiguous()
        elif key == _TABLE:
            if value.shape[1] != value.shape[2]:
                raise CheckpointError(
                    f'pos_embed.table must be square for vit-pytorch, got {tuple(value.shape[1:3])}'
                )
            theirs[key] = value.flatten(1, 2)
        elif key == _CLS_TOKEN:
            theirs[key] = value.flatten()
        elif matches(_TEMPERATURE, key):
            if not bool(torch.all(value > 0)):
                raise CheckpointError(f'{key!r} must be positive to have a logarithm')
            theirs[key] = value.log()
    return theirs


def _read_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    norms = list(find(weights, 'backbone.blocks.#.norm1.weight').values())
    heads = list(find(weights, _TEMPERATURE).values())
    convs = find(weights, 'backbone.patch_embed.proj.#.0.weight')
    patch_size = 2 ** len(convs) if convs else None
    variant = PAPER
    if 'backbone.patch_embed.pre_norm.weight' in weights:
        variant = VIT_PYTORCH
        patch_size = weights[_STEM].shape[-1] if _STEM in weights else None
    return {
        'variant': variant,
        'embed_dims': norms[0].shape[0] if norms else 0,
        'depth': len(norms),
        'num_heads': heads[0].shape[0] if heads else None,
        'patch_size': patch_size,
    }


def _shown_patch_size(patch_size: int | None) -> int | None:
    """Size 4 has the tensors of 16: only strides differ."""
    return 16 if patch_size == 4 else patch_size


def _last_map(arch: XCiTArch) -> dict[str, Any]:
    return dict(out_indices=(arch.depth - 1,), pyramid=False)


def _pooling(backbone: XCiT) -> ClassAttentionPooling:
    return ClassAttentionPooling(**backbone.arch.class_attention)


def vit_pytorch_options(
    image_size: int = 224,
    patch_size: int = 16,
    embed_dims: int = 384,
    depth: int = 12,
    num_heads: int = 8,
    head_dims: int = 64,
    mlp_dims: int = 1536,
    cls_depth: int = 2,
) -> dict[str, Any]:
    """Return the arguments of an XCiT with the sizes of a `vit_pytorch.xcit.XCiT`.

    Args:
        image_size: Side in pixels of the image for which positions are learned.
        patch_size: Side of a patch in pixels.
        embed_dims: Channels, there called `dim`.
        depth: Cross-covariance blocks.
        num_heads: Attention heads, there called `heads`.
        head_dims: Channels of a head, there called `dim_head`.
        mlp_dims: Width of the MLPs, there called `mlp_dim`.
        cls_depth: Class-attention layers.

    Raises:
        ValueError: If `patch_size` does not divide `image_size`.
    """
    if patch_size < 1 or image_size % patch_size:
        raise ValueError(f'patch_size must divide image_size {image_size}, got {patch_size}')
    arch = XCiTArch(
        embed_dims,
        depth,
        num_heads,
        head_dims=head_dims,
        mlp_dims=mlp_dims,
        cls_layers=cls_depth,
        variant=VIT_PYTORCH,
        grid_size=(image_size // patch_size,) * 2,
    )
    options = dict(arch=arch, patch_size=patch_size)
    return options if patch_size in PATCH_SIZES else {**options, 'pyramid': False}


_CLASSIFIER = ('neck.norm.', 'neck.patch_norm.', _CLS_TOKEN, 'neck.cls_attn_blocks.', HEAD)

XCIT = Network(
    name='xcit',
    backbone=XCiT,
    archs=ARCHS,
    models={
        **{
            f'xcit_{arch.replace("-", "_")}_p{patch_size}': {'arch': arch, 'patch_size': patch_size}
            for arch in ARCHS
            for patch_size in PATCH_SIZES
        },
        **{
            f'xcit_{arch.replace("-", "_")}_p4': {'arch': arch, 'patch_size': 4, 'pyramid': False}
            for arch in ('small-12', 'medium-12', 'large-12')
        },
    },
    free_models={'xcit_vit_pytorch': vit_pytorch_options},
    arch_settings=('variant', 'embed_dims', 'depth', 'num_heads'),
    options={'patch_size': _shown_patch_size},
    read_settings=_read_settings,
    last_map=_last_map,
    pooling=_pooling,
    dialects=(
        Dialect(
            'official',
            _OFFICIAL,
            required=('blocks.#.attn.temperature', 'pos_embeder.token_projection.weight'),
        ),
        Dialect(
            'timm',
            _TIMM,
            required=('blocks.#.attn.temperature', 'cls_attn_blocks.#.attn.q.weight'),
            steps=(_JOIN_Q_K_V,),
        ),
        Dialect(
            'mmpretrain',
            _MMPRETRAIN,
            required=('xca_layers.#.attn.temperature',),
            head_prefixes=(HEAD,),
            steps=(_JOIN_Q_K_V,),
        ),
        Dialect(
            VIT_PYTORCH,
            _VIT_PYTORCH,
            required=('xcit_transformer.layers.#.0.fn.temperature',),
            steps=(
                joined('neck.cls_attn_blocks.#.attn', {'q': 1, 'kv': 2}, 'qkv'),
                Step(_read_vit_pytorch, _write_vit_pytorch),
            ),
            variant=VIT_PYTORCH,
        ),
        Dialect(
            OURS,
            None,
            required=('blocks.#.attn.temperature',),
            forbidden=('pos_embeder.token_projection.weight', 'cls_attn_blocks.#.attn.q.weight'),
            head_prefixes=_CLASSIFIER,
            variant=None,
        ),
    ),
    stacks=('blocks',),
    optional_parts=(
        OptionalPart(
            'pyramid.',
            missing='the source has no pyramid',
            unexpected='the model has no pyramid',
        ),
        OptionalPart(
            '.num_batches_tracked', missing="the source does not count BatchNorm's batches"
        ),
    ),
    adapters={
        'patch_embed.proj.0.0.weight': adapt_stem,
        'pos_embed.table': resize_position,
    },
    files=FILES,
)
