"""How each source names the weights of Twins-SVT.

Ours, on the right of every rule, are the names of a classifier: `backbone.`, `neck.`, `head.fc.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from mmvit_backbones.checkpoints.rules import Rule, StateDict, join, rename, reshape, split, under

ATTENTION = r'backbone\.blocks\.\d+\.\d+\.attn'

_ATTENTION = ('qkv', 'q', 'kv', 'proj', 'sr', 'norm')
_BACKBONE = (
    'patch_embeds.#.pre_norm.*',
    'patch_embeds.#.proj.*',
    'patch_embeds.#.norm.*',
    'blocks.#.#.norm1.*',
    *(f'blocks.#.#.attn.{layer}.*' for layer in _ATTENTION),
    'blocks.#.#.norm2.*',
    'blocks.#.#.mlp.fc1.*',
    'blocks.#.#.mlp.fc2.*',
    'pos_block.#.proj.0.*',
    'norm_list.#.*',
)
OURS: tuple[Rule, ...] = (
    *((name, f'backbone.{name}') for name in _BACKBONE),
    ('neck.norm.*', 'neck.norm.*'),
    ('head.fc.*', 'head.fc.*'),
)

# The authors' three copies; the dense ones have output norms.
OFFICIAL: tuple[Rule, ...] = (
    *((name, f'backbone.{name}') for name in _BACKBONE if 'pre_norm' not in name),
    ('norm.*', 'neck.norm.*'),
    ('head.*', 'head.fc.*'),
)


# As the authors' classification code.
TIMM: tuple[Rule, ...] = (
    *(rule for rule in OFFICIAL if rule[0] != 'norm_list.#.*'),
    (None, 'backbone.norm_list.#.*'),
)


def _openmmlab(blocks: str) -> tuple[Rule, ...]:
    """What mmpretrain and mmsegmentation name alike; `blocks` is their list of stages."""
    return (
        ('patch_embeds.#.projection.*', 'backbone.patch_embeds.#.proj.*'),
        ('patch_embeds.#.norm.*', 'backbone.patch_embeds.#.norm.*'),
        ('position_encodings.#.proj.*', 'backbone.pos_block.#.proj.0.*'),
        *under(
            f'{blocks}.#.#.',
            'backbone.blocks.#.#.',
            (
                ('norm1.*', 'norm1.*'),
                ('norm2.*', 'norm2.*'),
                ('ffn.layers.0.0.*', 'mlp.fc1.*'),
                ('ffn.layers.1.*', 'mlp.fc2.*'),
                ('attn.qkv.*', 'attn.qkv.*'),
                ('attn.proj.*', 'attn.proj.*'),
                ('attn.sr.*', 'attn.sr.*'),
                ('attn.norm.*', 'attn.norm.*'),
            ),
        ),
    )


_MMPRETRAIN: tuple[Rule, ...] = (
    *_openmmlab('stages'),
    ('stages.#.#.attn.q.*', 'backbone.blocks.#.#.attn.q.*'),
    ('stages.#.#.attn.kv.*', 'backbone.blocks.#.#.attn.kv.*'),
    ('head.fc.*', 'head.fc.*'),
)
_DENSE_NORMS: Rule = ('norm_after_stage#.*', 'backbone.norm_list.#.*')
_FINAL_NORM: Rule = ('norm_after_stage3.*', 'neck.norm.*')

# nn.MultiheadAttention keeps q, k and v in one matrix. There is no head, so a classifier's is
# dropped; the files that mmsegmentation hosts still have the final norm, which its class lacks.
_MMSEG: tuple[Rule, ...] = (
    *_openmmlab('layers'),
    ('layers.#.#.attn.attn.in_proj_*', 'backbone.blocks.#.#.attn.in_proj.*'),
    ('layers.#.#.attn.attn.out_proj.*', 'backbone.blocks.#.#.attn.out_proj.*'),
    ('norm_list.#.*', 'backbone.norm_list.#.*'),
)
_MMSEG_LEFTOVER: Rule = ('norm.*', 'neck.norm.*')
_MMSEG_DROPPED: tuple[Rule, ...] = ((None, 'neck.norm.*'), (None, 'head.fc.*'))


def read_ours(weights: StateDict) -> StateDict:
    return rename(weights, OURS, to_ours=True)


def write_ours(weights: StateDict) -> StateDict:
    return rename(weights, OURS, to_ours=False)


def read_official(weights: StateDict) -> StateDict:
    return rename(weights, OFFICIAL, to_ours=True)


def write_official(weights: StateDict) -> StateDict:
    return rename(weights, OFFICIAL, to_ours=False)


def write_timm(weights: StateDict) -> StateDict:
    return rename(weights, TIMM, to_ours=False)


def read_mmpretrain(weights: StateDict) -> StateDict:
    normed = {match[1] for key in weights if (match := re.match(r'norm_after_stage(\d)\.', key))}
    is_dense = normed - {'3'}
    return rename(weights, (*_MMPRETRAIN, _DENSE_NORMS if is_dense else _FINAL_NORM), to_ours=True)


def write_mmpretrain(weights: StateDict) -> StateDict:
    return rename(weights, (*_MMPRETRAIN, _DENSE_NORMS, _FINAL_NORM), to_ours=False)


def read_mmseg(weights: StateDict) -> StateDict:
    ours = rename(weights, (*_MMSEG, _MMSEG_LEFTOVER), to_ours=True)
    ours = split(ours, ATTENTION, 'in_proj', {'q': 1, 'kv': 2})
    return split(ours, ATTENTION, 'out_proj', {'proj': 1})


def write_mmseg(weights: StateDict) -> StateDict:
    is_global = {key.removesuffix('.q.weight') for key in weights if key.endswith('.attn.q.weight')}
    for attn in is_global:
        weights = join(weights, re.escape(attn), ('proj',), 'out_proj')
    weights = join(weights, ATTENTION, ('q', 'kv'), 'in_proj')
    return rename(weights, (*_MMSEG, *_MMSEG_DROPPED), to_ours=False)


def _vit_pytorch(stages: Mapping[int, tuple[int, bool]]) -> Iterator[Rule]:
    """Rules for a model of the package vit-pytorch.

    Its blocks come in units of local attention, MLP, global attention, MLP (the last two only in
    a stage without local attention). The first unit stands before the position encoding.

    Args:
        stages: Stage -> number of blocks and whether it has local attention.
    """
    for stage, (num_blocks, has_local) in stages.items():
        patch, ours = f'layers.{stage}.0.proj.', f'backbone.patch_embeds.{stage}.'
        yield from _channel_norm(f'{patch}0', f'{ours}pre_norm')
        yield (f'{patch}1.*', f'{ours}proj.*')
        yield from _channel_norm(f'{patch}2', f'{ours}norm')
        yield (f'layers.{stage}.2.proj.fn.*', f'backbone.pos_block.{stage}.proj.0.*')
        for block in range(num_blocks):
            unit, half = divmod(block, 2) if has_local else (block, 1)
            theirs = f'layers.{stage}.1.layers.0.'
            if unit > 0:
                theirs = f'layers.{stage}.3.layers.{unit - 1}.'
            yield from under(
                theirs,
                f'backbone.blocks.{stage}.{block}.',
                (
                    *_channel_norm(f'{2 * half}.fn.norm', 'norm1'),
                    (f'{2 * half}.fn.to_q.*', 'attn.q.*'),
                    (f'{2 * half}.fn.to_kv.*', 'attn.kv.*'),
                    (f'{2 * half}.fn.to_out.0.*', 'attn.proj.*'),
                    *_channel_norm(f'{2 * half + 1}.fn.net.0', 'norm2'),
                    (f'{2 * half + 1}.fn.net.1.*', 'mlp.fc1.*'),
                    (f'{2 * half + 1}.fn.net.4.*', 'mlp.fc2.*'),
                ),
            )
    yield ('layers.6.*', 'head.fc.*')
    yield (None, 'backbone.norm_list.#.*')  # that package has no dense output


def _channel_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (f'{theirs}.g', f'{ours}.weight'), (f'{theirs}.b', f'{ours}.bias')


_NORMS = r'backbone\..*norm\d?\.(weight|bias)'
_LINEAR = r'backbone\.blocks\..*\.(attn\.(qkv|q|proj)|mlp\.fc\d)\.weight'


def read_vit_pytorch(weights: StateDict) -> StateDict:
    units: dict[int, int] = {}
    has_local = set()
    for key in weights:
        if match := re.match(r'layers\.(\d)\.([13])\.layers\.(\d+)\.(\d)\.', key):
            stage, group, unit, part = map(int, match.groups())
            units[stage] = max(units.get(stage, 0), unit + 1 + (group == 3))
            if part == 0:
                has_local.add(stage)
    stages = {s: (n * (2 if s in has_local else 1), s in has_local) for s, n in units.items()}
    ours = rename(weights, _vit_pytorch(stages), to_ours=True)
    for stage in sorted(has_local):
        local = rf'backbone\.blocks\.{stage}\.\d*[02468]\.attn'
        ours = join(ours, local, ('q', 'kv'), 'qkv')
    ours = reshape(ours, _NORMS, (-1,))
    ours = reshape(ours, _LINEAR, (0, 0))
    channels = 3
    for stage in sorted(stages):
        key = f'backbone.patch_embeds.{stage}.proj.weight'
        if key in ours:
            ours[key] = _as_patches(ours[key], channels)
            channels = ours[key].shape[0]
    return ours


def _as_patches(weight: Tensor, channels: int) -> Tensor:
    """Turn a projection of flattened patches (D, C p p, 1, 1) into a convolution (D, C, p, p)."""
    side = round((weight.shape[1] / channels) ** 0.5)
    return weight.reshape(weight.shape[0], channels, side, side)


def write_vit_pytorch(weights: StateDict) -> StateDict:
    blocks: dict[int, int] = {}
    has_local = set()
    for key in weights:
        if match := re.match(r'backbone\.blocks\.(\d+)\.(\d+)\.attn\.(qkv)?', key):
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
            if match[3]:
                has_local.add(stage)
    weights = reshape(weights, _NORMS, (1, -1, 1, 1))
    weights = reshape(weights, _LINEAR, (0, 0, 1, 1))
    weights = reshape(weights, r'backbone\.patch_embeds\.\d+\.proj\.weight', (0, -1, 1, 1))
    weights = split(weights, ATTENTION, 'qkv', {'q': 1, 'kv': 2})
    stages = {stage: (count, stage in has_local) for stage, count in blocks.items()}
    return rename(weights, _vit_pytorch(stages), to_ours=False)
