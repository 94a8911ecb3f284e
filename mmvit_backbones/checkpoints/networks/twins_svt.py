"""Twins-SVT: how each source names its weights, and the public files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mmvit_backbones.backbones.twins_svt import ARCHS, GLOBAL, LOCAL, TwinsSVT, TwinsSVTArch
from mmvit_backbones.checkpoints.adapting import adapt_stem
from mmvit_backbones.checkpoints.description import (
    HEAD,
    OURS,
    Dialect,
    Network,
    OptionalPart,
    PublicFile,
    at,
)
from mmvit_backbones.checkpoints.download import Address
from mmvit_backbones.checkpoints.networks.sources import (
    MMCV_FFN,
    drive,
    mmpretrain_files,
    rows,
    timm_hub,
)
from mmvit_backbones.checkpoints.rules import (
    Rule,
    StateDict,
    Step,
    find,
    joined,
    reshaped,
    under,
)
from mmvit_backbones.layers.variant import PAPER, VIT_PYTORCH
from mmvit_backbones.necks import NormAveragePooling

# The authors' three copies; the dense ones have output norms. timm has the same names.
_OFFICIAL: tuple[Rule, ...] = (
    *(
        (name, f'backbone.{name}')
        for name in (
            'patch_embeds.#.proj.*',
            'patch_embeds.#.norm.*',
            'pos_block.#.proj.0.*',
            'norm_list.#.*',
            *(f'blocks.#.#.{norm}.*' for norm in ('norm1', 'norm2')),
            *(f'blocks.#.#.attn.{part}.*' for part in ('qkv', 'q', 'kv', 'proj', 'sr', 'norm')),
            *(f'blocks.#.#.mlp.{layer}.*' for layer in ('fc1', 'fc2')),
        )
    ),
    ('norm.*', 'neck.norm.*'),
    ('head.*', 'head.fc.*'),
)
_TIMM: tuple[Rule, ...] = tuple(
    (None if theirs == 'norm_list.#.*' else theirs, ours) for theirs, ours in _OFFICIAL
)


def _openmmlab(blocks: str) -> tuple[Rule, ...]:
    """What mmpretrain and mmsegmentation name alike; `blocks` is their list of stages."""
    in_block = (
        *((f'{norm}.*', f'{norm}.*') for norm in ('norm1', 'norm2')),
        *((f'attn.{part}.*', f'attn.{part}.*') for part in ('qkv', 'proj', 'sr', 'norm')),
        *MMCV_FFN,
    )
    return (
        ('patch_embeds.#.projection.*', 'backbone.patch_embeds.#.proj.*'),
        ('patch_embeds.#.norm.*', 'backbone.patch_embeds.#.norm.*'),
        ('position_encodings.#.proj.*', 'backbone.pos_block.#.proj.0.*'),
        *under(f'{blocks}.#.#.', 'backbone.blocks.#.#.', in_block),
    )


def _mmpretrain(weights: Mapping[str, Tensor], to_ours: bool) -> Iterator[Rule]:
    """Its last norm is the output norm of a dense backbone, else that of the pooling."""
    yield from _openmmlab('stages')
    for part in ('q', 'kv'):
        yield (f'stages.#.#.attn.{part}.*', f'backbone.blocks.#.#.attn.{part}.*')
    yield ('head.fc.*', 'head.fc.*')
    is_dense = any(stage < 3 for (stage,) in find(weights, 'norm_after_stage#.weight'))
    if is_dense or not to_ours:
        yield ('norm_after_stage#.*', 'backbone.norm_list.#.*')
    if not is_dense or not to_ours:
        yield ('norm_after_stage3.*', 'neck.norm.*')


# nn.MultiheadAttention keeps q, k and v in one matrix.
_ATTENTION = 'backbone.blocks.#.#.attn'


def _mmseg(_: Mapping[str, Tensor], to_ours: bool) -> Iterator[Rule]:
    """It has no classifier; yet the files that it hosts hold the authors' final norm."""
    yield from _openmmlab('layers')
    yield ('layers.#.#.attn.attn.in_proj_*', f'{_ATTENTION}.in_proj.*')
    yield ('layers.#.#.attn.attn.out_proj.*', f'{_ATTENTION}.out_proj.*')
    yield ('norm_list.#.*', 'backbone.norm_list.#.*')
    yield ('norm.*' if to_ours else None, 'neck.norm.*')
    yield (None, 'head.fc.*')


def _name_output_projections(weights: StateDict) -> StateDict:
    """Give the last layer of global attention, as in `nn.MultiheadAttention`, another name."""
    renamed = dict(weights)
    for stage, block in find(weights, f'{_ATTENTION}.q.weight'):
        attn = f'backbone.blocks.{stage}.{block}.attn'
        for kind in ('weight', 'bias'):
            renamed[f'{attn}.out_proj.{kind}'] = renamed.pop(f'{attn}.proj.{kind}')
    return renamed


def _merge_output_projections(weights: StateDict) -> StateDict:
    return {key.replace('.out_proj.', '.proj.'): value for key, value in weights.items()}


def _vit_pytorch(weights: Mapping[str, Tensor], to_ours: bool) -> Iterator[Rule]:
    """Rules for a model of the package vit-pytorch.

    Its blocks come in units of local attention, MLP, global attention, MLP (the last two only in
    a stage without local attention). The first unit stands before the position encoding.
    """
    for stage, blocks in enumerate(_their_stages(weights) if to_ours else _stages(weights)):
        patch, ours = f'layers.{stage}.0.proj.', f'backbone.patch_embeds.{stage}.'
        yield from _channel_norm(f'{patch}0', f'{ours}pre_norm')
        yield (f'{patch}1.*', f'{ours}proj.*')
        yield from _channel_norm(f'{patch}2', f'{ours}norm')
        yield (f'layers.{stage}.2.proj.fn.*', f'backbone.pos_block.{stage}.proj.0.*')
        for block, kind in enumerate(blocks):
            unit, half = divmod(block, 2) if LOCAL in blocks else (block, 1)
            group = '1.layers.0' if unit == 0 else f'3.layers.{unit - 1}'
            attn, mlp = f'{2 * half}.fn.', f'{2 * half + 1}.fn.net.'
            local = 'local_' if kind == LOCAL else ''
            yield from under(
                f'layers.{stage}.{group}.',
                f'backbone.blocks.{stage}.{block}.',
                (
                    *_channel_norm(f'{attn}norm', 'norm1'),
                    (f'{attn}to_q.*', f'attn.{local}q.*'),
                    (f'{attn}to_kv.*', f'attn.{local}kv.*'),
                    (f'{attn}to_out.0.*', 'attn.proj.*'),
                    *_channel_norm(f'{mlp}0', 'norm2'),
                    (f'{mlp}1.*', 'mlp.fc1.*'),
                    (f'{mlp}4.*', 'mlp.fc2.*'),
                ),
            )
    yield ('layers.6.*', 'head.fc.*')
    yield (None, 'backbone.norm_list.#.*')  # that package has no dense output


def _channel_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (f'{theirs}.g', f'{ours}.weight'), (f'{theirs}.b', f'{ours}.bias')


def _their_stages(weights: Mapping[str, Tensor]) -> Iterator[str]:
    for stage in range(4):
        units = len(find(weights, f'layers.{stage}.#.layers.#.2.fn.norm.g'))
        yield (
            (LOCAL + GLOBAL) * units
            if f'layers.{stage}.1.layers.0.0.fn.norm.g' in weights
            else (GLOBAL * units)
        )


def _stages(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The letter of each block: only global attention has a query projection of its own."""
    stages: dict[int, str] = {}
    is_global = find(weights, f'{_ATTENTION}.q.weight')
    for stage, block in find(weights, 'backbone.blocks.#.#.norm1.weight'):
        kind = GLOBAL if (stage, block) in is_global else LOCAL
        stages[stage] = stages.get(stage, '') + kind
    return tuple(stages.values())


_CONVS = (
    *(f'{_ATTENTION}.{part}.weight' for part in ('qkv', 'q', 'proj')),
    *(f'backbone.blocks.#.#.mlp.{layer}.weight' for layer in ('fc1', 'fc2')),
)
_CHANNEL_NORMS = (
    *(f'backbone.patch_embeds.#.{norm}.*' for norm in ('pre_norm', 'norm')),
    *(f'backbone.blocks.#.#.{norm}.*' for norm in ('norm1', 'norm2')),
)


def _unflatten_patches(weights: StateDict) -> StateDict:
    """Turn projections of flattened patches (D, C p p, 1, 1) into convolutions (D, C, p, p)."""
    weights = dict(weights)
    channels = 3
    for (stage,), value in find(weights, 'backbone.patch_embeds.#.proj.weight').items():
        side = round((value.shape[1] / channels) ** 0.5)
        weights[f'backbone.patch_embeds.{stage}.proj.weight'] = value.reshape(
            value.shape[0], channels, side, side
        )
        channels = value.shape[0]
    return weights


def _flatten_patches(weights: StateDict) -> StateDict:
    weights = dict(weights)
    for (stage,), value in find(weights, 'backbone.patch_embeds.#.proj.weight').items():
        weights[f'backbone.patch_embeds.{stage}.proj.weight'] = value.reshape(len(value), -1, 1, 1)
    return weights


def _read_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    patches = find(weights, 'backbone.patch_embeds.#.proj.weight')
    return {
        'variant': VIT_PYTORCH
        if find(weights, 'backbone.patch_embeds.#.pre_norm.weight')
        else PAPER,
        'embed_dims': tuple(value.shape[0] for value in patches.values()),
        'stages': _stages(weights),
    }


def _last_map(arch: TwinsSVTArch) -> dict[str, Any]:
    return dict(out_indices=(len(arch.stages) - 1,), out_norm=False)


def pooling_of(backbone: TwinsSVT) -> NormAveragePooling:
    """Build the pooling of an architecture: with a norm, except in vit-pytorch's variant.

    Args:
        backbone: The backbone.
    """
    arch = backbone.arch
    return NormAveragePooling(
        backbone.out_channels[-1], norm=arch.variant == PAPER, norm_eps=arch.norm_eps
    )


_MMSEG_FILES = 'https://download.openmmlab.com/mmsegmentation/v0.5/'
_AUTHORS = 'https://github.com/Meituan-AutoML/Twins'
_MMSEG_README = 'https://github.com/open-mmlab/mmsegmentation/tree/main/configs/twins'

# Top-1; ends of the names at mmpretrain and mmsegmentation; the authors' download page.
_IMAGENET = """
small 81.7 8xb128_in1k_20220126-8fe5205b 20220308-7e1c3695 131SVOphM_-SaBytf4kWjo3ony5hpOt4S
base  83.2 8xb128_in1k_20220126-e31cc8e9 20220308-1b7eb711 1s83To8xgDWY6Ad8VBP3Nx9gqY709rrGu
large 83.7 16xb64_in1k_20220126-4817645f 20220308-fb5936f3 1um39wxIaicmOquP2fr_SiZdxNCUou8w-
"""
# mIoU; folder; end of the name.
_DENSE = """
sem_fpn small 44.47 twins_svt-s_fpn_fpnhead_8x4_512x512_80k_ade20k 20211130_141006-0a0d3317
upernet small 46.08 twins_svt-s_uperhead_8x2_512x512_160k_ade20k   20211130_141005-e48a2d94
sem_fpn base  46.77 twins_svt-b_fpn_fpnhead_8x4_512x512_80k_ade20k 20211201_113849-88b2907c
upernet base  48.04 twins_svt-b_uperhead_8x2_512x512_160k_ade20k   20211202_040826-0943a1f1
sem_fpn large 46.55 twins_svt-l_fpn_fpnhead_8x4_512x512_80k_ade20k 20211130_141005-1d59bee2
upernet large 49.65 twins_svt-l_uperhead_8x2_512x512_160k_ade20k   20211130_141005-3e2cae61
"""
# mIoU; the authors' download page.
_AUTHORS_UPERNET = """
small 46.2 18OhG0sbAJ5okPj0zn-8YTydKG9jS8TUx
base  47.4 1LNtdvACihmKO6XyBPoJDxbrd6AuHVVvq
large 48.8 1xS91hytfzuMZ5Rgb-W-cOJ9G7ptjVwlO
"""


def _classifiers() -> Iterator[PublicFile]:
    for size, accuracy, mmpretrain, mmseg, page in rows(_IMAGENET):
        model, top1 = f'twins_svt_{size}', (float(accuracy),)
        files = mmpretrain_files(f'twins/twins-svt-{size}_3rdparty_{mmpretrain}.pth')
        mirrors = (*at(timm_hub(f'{model}.in1k'), *files), drive(page))
        yield PublicFile(f'{model}.in1k', model, mirrors, 224, 'top-1', top1, _AUTHORS)
        url = at(f'{_MMSEG_FILES}pretrain/twins/alt_gvt_{size}_{mmseg}.pth')
        name = f'{model}.in1k_mmseg'  # the authors' weights without the head
        yield PublicFile(name, model, url, 224, 'top-1', top1, _AUTHORS, num_classes=0)


def _dense() -> Iterator[PublicFile]:
    for method, size, miou, folder, end in rows(_DENSE):
        name, url = f'{method}_twins_svt_{size}.ade20k', f'twins/{folder}/{folder}_{end}.pth'
        yield _segmentor(name, at(_MMSEG_FILES + url), miou, _MMSEG_README)
    for size, miou, page in rows(_AUTHORS_UPERNET):
        name = f'upernet_twins_svt_{size}.ade20k_authors'
        yield _segmentor(name, (drive(page),), miou, _AUTHORS)


def _segmentor(name: str, addresses: tuple[Address, ...], miou: str, source: str) -> PublicFile:
    model = name[name.index('twins') :].partition('.')[0]
    return PublicFile(name, model, addresses, 512, 'mIoU', (float(miou),), source, num_classes=150)


_CLASSIFIER = ('neck.norm.', HEAD)
_BLOCK = 'blocks.#.#.norm1.weight'

TWINS_SVT = Network(
    name='twins_svt',
    backbone=TwinsSVT,
    archs=ARCHS,
    models={f'twins_svt_{name.replace("-", "_")}': {'arch': name} for name in ARCHS},
    arch_settings=('variant', 'embed_dims', 'stages'),
    read_settings=_read_settings,
    last_map=_last_map,
    pooling=pooling_of,
    # Our dense backbone has the authors' names. Weights are called official where they have a
    # final norm and ours where they don't, which makes no difference.
    dialects=(
        Dialect('official', _OFFICIAL, required=(_BLOCK, 'norm.weight')),
        Dialect('timm', _TIMM),
        Dialect(
            'mmpretrain',
            _mmpretrain,
            required=('stages.#.#.norm1.weight', 'position_encodings.#.proj.weight'),
            head_prefixes=(HEAD,),
        ),
        Dialect(
            'mmseg',
            _mmseg,
            required=('layers.#.#.norm1.weight', 'position_encodings.#.proj.weight'),
            steps=(
                joined(_ATTENTION, {'q': 1, 'kv': 2}, 'in_proj').inverse,
                Step(_merge_output_projections, _name_output_projections),
            ),
        ),
        Dialect(
            VIT_PYTORCH,
            _vit_pytorch,
            required=('layers.#.0.proj.0.g', 'layers.#.2.proj.fn.weight'),
            steps=(
                joined(_ATTENTION, {'local_q': 1, 'local_kv': 2}, 'qkv'),
                reshaped(_CHANNEL_NORMS, ours=(-1,), theirs=(1, -1, 1, 1)),
                reshaped(_CONVS, ours=(0, 0), theirs=(0, 0, 1, 1)),
                Step(_unflatten_patches, _flatten_patches),
            ),
            variant=VIT_PYTORCH,
        ),
        Dialect(
            OURS,
            None,
            required=(_BLOCK,),
            forbidden=('norm.weight',),
            head_prefixes=_CLASSIFIER,
            variant=None,
        ),
    ),
    stacks=('patch_embeds', 'blocks', 'pos_block', 'norm_list'),
    optional_parts=(
        OptionalPart(
            'norm_list.',
            missing='the source has no output norms',
            unexpected='the model has no output norms',
        ),
    ),
    adapters={'patch_embeds.0.proj.weight': adapt_stem},
    crop=0.9,
    files=(*_classifiers(), *_dense()),
)
