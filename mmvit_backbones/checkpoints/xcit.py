"""How each source names the weights of XCiT.

Ours, on the right of every rule, are the names of a classifier: `backbone.`, `neck.`, `head.fc.`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.rules import Rule, StateDict, join, rename, split, under

CLASS_ATTENTION = r'neck\.cls_attn_blocks\.\d+\.attn'
QKV = {'q': 1, 'k': 1, 'v': 1}

_MLP: tuple[Rule, ...] = (('mlp.fc1.*', 'mlp.fc1.*'), ('mlp.fc2.*', 'mlp.fc2.*'))
_MMCV_FFN: tuple[Rule, ...] = (
    ('ffn.layers.0.0.*', 'mlp.fc1.*'),
    ('ffn.layers.1.*', 'mlp.fc2.*'),
)
_SAME_IN_BLOCK = tuple(
    (name, name)
    for name in (
        *('gamma1', 'gamma2', 'gamma3', 'norm1.*', 'norm2.*', 'norm3.*'),
        *('attn.temperature', 'attn.qkv.*', 'attn.proj.*'),
    )
)
_LOCAL_PATCHES = tuple((f'local_mp.{name}.*',) * 2 for name in ('conv1', 'bn', 'conv2'))
_SAME_IN_CLASS_BLOCK = tuple(
    (name, name) for name in ('gamma1', 'gamma2', 'norm1.*', 'norm2.*', 'attn.proj.*')
)
_QKV_IN_ONE: tuple[Rule, ...] = (('attn.qkv.*', 'attn.qkv.*'),)
_QKV_IN_THREE: tuple[Rule, ...] = tuple((f'attn.{part}.*',) * 2 for part in QKV)

_STEM: tuple[Rule, ...] = (('patch_embed.proj.#.#.*', 'backbone.patch_embed.proj.#.#.*'),)
_BLOCKS: tuple[Rule, ...] = tuple(
    under('blocks.#.', 'backbone.blocks.#.', (*_SAME_IN_BLOCK, *_LOCAL_PATCHES, *_MLP))
)
_PYRAMID: tuple[Rule, ...] = (('fpn#.#.*', 'fpn#.#.*'),)

OURS: tuple[Rule, ...] = (
    *_STEM,
    *_BLOCKS,
    *((name, f'backbone.{name}') for name in ('pos_embed.token_projection.*', 'pos_embed.table')),
    *((f'patch_embed.{n}.*', f'backbone.patch_embed.{n}.*') for n in ('pre_norm', 'proj', 'norm')),
    *under('pyramid.', 'backbone.pyramid.', _PYRAMID),
    ('neck.cls_token', 'neck.cls_token'),
    ('neck.patch_norm.*', 'neck.patch_norm.*'),
    ('neck.norm.*', 'neck.norm.*'),
    *under(
        'neck.cls_attn_blocks.#.',
        'neck.cls_attn_blocks.#.',
        (*_SAME_IN_CLASS_BLOCK, *_QKV_IN_ONE, *_MLP),
    ),
    ('head.fc.*', 'head.fc.*'),
)

# The authors' three copies: classification has class attention, the dense ones the pyramid.
OFFICIAL: tuple[Rule, ...] = (
    *_STEM,
    *_BLOCKS,
    ('pos_embeder.token_projection.*', 'backbone.pos_embed.token_projection.*'),
    *under('', 'backbone.pyramid.', _PYRAMID),
    ('cls_token', 'neck.cls_token'),
    *under(
        'cls_attn_blocks.#.',
        'neck.cls_attn_blocks.#.',
        (*_SAME_IN_CLASS_BLOCK, *_QKV_IN_ONE, *_MLP),
    ),
    ('norm.*', 'neck.norm.*'),
    ('head.*', 'head.fc.*'),
)

TIMM: tuple[Rule, ...] = (
    *_STEM,
    *_BLOCKS,
    ('pos_embed.token_projection.*', 'backbone.pos_embed.token_projection.*'),
    (None, 'backbone.pyramid.fpn#.#.*'),
    ('cls_token', 'neck.cls_token'),
    *under(
        'cls_attn_blocks.#.',
        'neck.cls_attn_blocks.#.',
        (*_SAME_IN_CLASS_BLOCK, *_QKV_IN_THREE, *_MLP),
    ),
    ('norm.*', 'neck.norm.*'),
    ('head.*', 'head.fc.*'),
)

MMPRETRAIN: tuple[Rule, ...] = (
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
            *_SAME_IN_BLOCK,
            *_MMCV_FFN,
            ('local_mp.conv1.conv.*', 'local_mp.conv1.*'),
            ('local_mp.conv1.bn.*', 'local_mp.bn.*'),
            ('local_mp.conv2.conv.*', 'local_mp.conv2.*'),
        ),
    ),
    (None, 'backbone.pyramid.fpn#.#.*'),
    ('cls_token', 'neck.cls_token'),
    *under(
        'ca_layers.#.',
        'neck.cls_attn_blocks.#.',
        (*_SAME_IN_CLASS_BLOCK, *_QKV_IN_THREE, *_MMCV_FFN),
    ),
    ('norm.*', 'neck.norm.*'),
    ('head.fc.*', 'head.fc.*'),
)

VIT_PYTORCH: tuple[Rule, ...] = (
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


def read_ours(weights: StateDict) -> StateDict:
    return rename(weights, OURS, to_ours=True)


def write_ours(weights: StateDict) -> StateDict:
    return rename(weights, OURS, to_ours=False)


def read_official(weights: StateDict) -> StateDict:
    return rename(weights, OFFICIAL, to_ours=True)


def write_official(weights: StateDict) -> StateDict:
    return rename(weights, OFFICIAL, to_ours=False)


def read_timm(weights: StateDict) -> StateDict:
    return join(rename(weights, TIMM, to_ours=True), CLASS_ATTENTION, tuple(QKV), 'qkv')


def write_timm(weights: StateDict) -> StateDict:
    return rename(split(weights, CLASS_ATTENTION, 'qkv', QKV), TIMM, to_ours=False)


def read_mmpretrain(weights: StateDict) -> StateDict:
    return join(rename(weights, MMPRETRAIN, to_ours=True), CLASS_ATTENTION, tuple(QKV), 'qkv')


def write_mmpretrain(weights: StateDict) -> StateDict:
    return rename(split(weights, CLASS_ATTENTION, 'qkv', QKV), MMPRETRAIN, to_ours=False)


def read_vit_pytorch(weights: StateDict) -> StateDict:
    """Read that package's names; its patches are (row, column, channel), ours (channel, ...).

    Raises:
        CheckpointError: If the position table is not that of a square image.
    """
    ours = join(rename(weights, VIT_PYTORCH, to_ours=True), CLASS_ATTENTION, ('q', 'kv'), 'qkv')
    for key, value in ours.items():
        if key.startswith(('backbone.patch_embed.pre_norm.', 'backbone.patch_embed.proj.weight')):
            patches = _unflatten(value)  # (..., p, p, C)
            ours[key] = patches.movedim(-1, -3)
            if 'pre_norm' in key:
                ours[key] = ours[key].reshape(-1)
            ours[key] = ours[key].contiguous()
        elif key == 'backbone.pos_embed.table':
            side = round(value.shape[1] ** 0.5)
            if side * side != value.shape[1]:
                raise CheckpointError(
                    f'pos_embedding must have a square number of positions, got {value.shape[1]}'
                )
            ours[key] = value.reshape(1, side, side, -1)
        elif key == 'neck.cls_token':
            ours[key] = value.reshape(1, 1, -1)
        elif _is_temperature(key):
            ours[key] = value.exp()
    return ours


def write_vit_pytorch(weights: StateDict) -> StateDict:
    """Write that package's names.

    Raises:
        CheckpointError: If the position table is not that of a square image, or a temperature is
            not positive and so has no logarithm.
    """
    weights = split(weights, CLASS_ATTENTION, 'qkv', {'q': 1, 'kv': 2})
    conv = weights.get('backbone.patch_embed.proj.weight')
    for key, value in weights.items():
        if key == 'backbone.patch_embed.proj.weight':
            weights[key] = value.movedim(1, -1).flatten(1).contiguous()
        elif key.startswith('backbone.patch_embed.pre_norm.') and conv is not None:
            patches = value.reshape(conv.shape[1:])  # (C, p, p)
            weights[key] = patches.movedim(0, -1).flatten().contiguous()
        elif key == 'backbone.pos_embed.table':
            if value.shape[1] != value.shape[2]:
                raise CheckpointError(
                    f'pos_embed.table must be square for vit-pytorch, got {tuple(value.shape[1:3])}'
                )
            weights[key] = value.flatten(1, 2)
        elif key == 'neck.cls_token':
            weights[key] = value.flatten()
        elif _is_temperature(key):
            if not bool(torch.all(value > 0)):
                raise CheckpointError(f'{key!r} must be positive to have a logarithm')
            weights[key] = value.log()
    return rename(weights, VIT_PYTORCH, to_ours=False)


def _is_temperature(key: str) -> bool:
    return re.fullmatch(r'backbone\.blocks\.\d+\.attn\.temperature', key) is not None


def _unflatten(value: Tensor) -> Tensor:
    """View a last dimension p p 3 as p, p, 3."""
    side = round((value.shape[-1] / 3) ** 0.5)
    return value.reshape(*value.shape[:-1], side, side, 3)
