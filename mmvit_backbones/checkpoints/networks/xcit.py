"""XCiT: how each source names its weights, and the public files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    PublicFile,
    at,
)
from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.networks.sources import (
    MMCV_FFN,
    drive,
    mmpretrain_files,
    rows,
    timm_hub,
)
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


_AUTHORS = 'https://github.com/facebookresearch/xcit'
_DINO = 'https://github.com/facebookresearch/dino'
_ROBUST = 'https://github.com/RobustBench/robustbench'
_ROBUST_AUTHORS = 'https://github.com/dedeswim/vits-robustness-torch'
_FILES = 'https://dl.fbaipublicfiles.com/xcit/'
_DINO_FILES = 'https://dl.fbaipublicfiles.com/dino/'
_ROBUST_FILES = f'{_ROBUST}/releases/download/v1.1/'

# Top-1 trained alone, with a teacher, with a teacher at 384 px; then dates and hashes of
# mmpretrain's files in that order.
_IMAGENET = """
nano_12_p16   69.9 72.2 75.4 13-ed776c38 13-fb247f7b 13-712db4d4
tiny_12_p16   77.1 78.6 80.9 13-82c547ca 13-d5fde0a3 13-00a20023
tiny_24_p16   79.4 80.4 82.6 13-366c1cd0 13-b472e80a 13-20e13917
small_12_p16  82.0 83.3 84.7 13-d36779d2 13-c95bbae1 13-ba36c982
small_24_p16  82.6 83.9 85.1 13-40febe38 13-130d7262 13-28fa2d0e
medium_24_p16 82.7 84.3 85.4 13-ad0aa92e 13-aca5cd0c 14-6c23a201
large_24_p16  82.9 84.9 85.8 14-d29d2529 14-4fea599c 14-bd515a34
nano_12_p8    73.8 76.3 77.8 13-3370c293 13-2f87d2b3 13-09d925ef
tiny_12_p8    79.7 81.2 82.4 13-8b02f8f5 13-f3f9b44f 13-a072174a
tiny_24_p8    81.9 82.6 83.7 13-4b9ba392 13-ad9c44b0 13-30d5e5ec
small_12_p8   83.4 84.2 85.1 13-9e364ce3 13-71886580 14-9f2178bc
small_24_p8   83.9 84.9 85.6 13-280ebcc7 13-f2773c78 14-57298eca
medium_24_p8  83.7 85.1 85.8 14-c362850b 14-625c953b 14-5db925e0
large_24_p8   84.4 85.4 86.0 14-08f2f664 14-8c092b34 14-9f718b1a
"""
# Linear and k-NN accuracy on ImageNet-1k.
_SELF_SUPERVISED = """
small_12_p16  77.8 76.0
small_12_p8   79.2 77.1
medium_24_p16 78.8 76.4
medium_24_p8  80.3 77.9
"""
# Data; accuracy on clean images and under AutoAttack; the authors' download page.
_ADVERSARIAL = """
small_12_p16  in1k      72.34 41.78 1wbx18o4l_ECyEYo9eyHnIYPlSNRMpO-D
medium_12_p16 in1k      74.04 45.24 184utgGfgh6m_GDBe_mETWf0HmxksGCHH
large_12_p16  in1k      73.76 47.60 154l0cWMtBMK64yG7gn3fzoTQSATHR8H5
small_12_p16  in1k_eps8 63.46 25.00 1lFcXruv6lUz9XqxvXTzyA_7YLprPZq2q
medium_12_p16 in1k_eps8 67.80 26.58 1Nw86jzlXLEGbFQZtd39i0Mampwh2ZAFv
large_12_p16  in1k_eps8 69.24 28.74 1UPDBDkirsxUGBEDrznJrTZ0JR173nMlv
small_12_p4   cifar10   90.06 56.14 1hu7Z4LhR4OOL3gmbHuT9ljRTSKIxGbPs
medium_12_p4  cifar10   91.30 57.27 1yan2zUNA6s6zDc0MOkfgCr3ctjWcQEI0
large_12_p4   cifar10   91.73 57.58 1NWI77UiSD5nOx6dQgvIyPRYQof-8ke-y
small_12_p4   cifar100  67.34 32.19 13vFwvVWEESfWWpoicPhD08HtzYszeyUr
medium_12_p4  cifar100  69.21 34.21 1YXnGsY3yvvaMucMwyfhDHIUchOSungj2
large_12_p4   cifar100  70.76 35.08 1Sg4BQ5pBdlR_M41VDxOlYxCl1_It8elL
"""
# Image size, classes, mean and std, as RobustBench feeds the models of each data set: those of
# ImageNet take pixels in [0, 1] as they are.
_ROBUST_INPUTS = {
    'in1k': (224, 1000, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    'cifar10': (32, 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    'cifar100': (32, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
# Box and mask AP of Mask R-CNN, mIoU of Semantic FPN and UperNet.
_DENSE = """
tiny_12_p16   42.7 38.5 38.1 41.5
tiny_12_p8    44.5 40.3 39.9 43.5
small_12_p16  45.3 40.8 43.9 45.9
small_12_p8   47.0 42.3 44.2 46.6
small_24_p16  46.5 41.8 44.6 46.9
small_24_p8   48.1 43.0 47.1 48.1
medium_24_p16 46.7 42.0 45.9 47.6
medium_24_p8  48.5 43.7 46.9 48.4
"""


def _classifiers() -> Iterator[PublicFile]:
    for size, *row in rows(_IMAGENET):
        model, theirs = f'xcit_{size}', f'xcit-{size.replace("_", "-")}'
        for i, (tag, pixels, dist) in enumerate(
            (('in1k', 224, ''), ('dist_in1k', 224, '_dist'), ('dist_in1k_384', 384, '_dist'))
        ):
            kind = f'3rdparty{dist.replace("_", "-")}_in1k{"-384px" if pixels == 384 else ""}'
            mirrors = at(
                timm_hub(f'{model}_{pixels}.fb{dist}_in1k'),
                f'{_FILES}{model}_{pixels}{dist}.pth',
                *mmpretrain_files(f'xcit/{theirs}_{kind}_202302{row[3 + i]}.pth'),
            )
            top1 = (float(row[i]),)
            yield PublicFile(f'{model}.{tag}', model, mirrors, pixels, 'top-1', top1, _AUTHORS)


def _self_supervised() -> Iterator[PublicFile]:
    """Whether the two repositories hold the same numbers is not known."""
    for size, *row in rows(_SELF_SUPERVISED):
        model, file, top1 = f'xcit_{size}', f'dino_xcit_{size}_pretrain', tuple(map(float, row))
        for tag, url, source in (
            ('dino', f'{_DINO_FILES}{file}/{file}.pth', _DINO),
            ('xcit_dino', f'{_FILES}{model.replace("_p", "_cp")}_dino.pth', _AUTHORS),
        ):
            name, metric = f'{model}.{tag}', 'linear / k-NN top-1'
            yield PublicFile(name, model, at(url), 224, metric, top1, source, num_classes=0)


def _adversarial() -> Iterator[PublicFile]:
    for size, data, clean, attacked, page in rows(_ADVERSARIAL):
        pixels, classes, mean, std = _ROBUST_INPUTS[data.removesuffix('_eps8')]
        is_hosted = not data.endswith('_eps8')
        theirs = f'{size[0]}-{data.replace("in1k", "imagenet")}'
        urls = [f'{_ROBUST_FILES}debenedetti2022light-xcit-{theirs}-linf.pth.tar'] * is_hosted
        yield PublicFile(
            f'xcit_{size}.robust_{data}',
            f'xcit_{size}',
            (*at(*urls), drive(page)),
            pixels,
            'top-1 clean / under AutoAttack',
            (float(clean), float(attacked)),
            _ROBUST if is_hosted else _ROBUST_AUTHORS,
            classes,
            'MIT' if is_hosted else 'not stated',
            mean,
            std,
        )


def _dense() -> Iterator[PublicFile]:
    for size, *row in rows(_DENSE):
        model = f'xcit_{size}'
        box, mask, fpn, upernet = map(float, row)
        url, metric = at(f'{_FILES}coco/maskrcnn_{model}.pth'), 'box AP / mask AP'
        name, ap = f'mask_rcnn_{model}.coco', (box, mask)
        yield PublicFile(name, model, url, 800, metric, ap, _AUTHORS, num_classes=80)
        for method, miou in (('sem_fpn', fpn), ('upernet', upernet)):
            name, url = f'{method}_{model}.ade20k', at(f'{_FILES}ade/{method}_{model}.pth')
            yield PublicFile(name, model, url, 512, 'mIoU', (miou,), _AUTHORS, num_classes=150)


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
    files=(*_classifiers(), *_self_supervised(), *_adversarial(), *_dense()),
)
