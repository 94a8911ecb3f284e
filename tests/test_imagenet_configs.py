"""ImageNet configs hold the authors' recipes and build; README and metafile name them all."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmvit_backbones.backbones.xcit import ARCHS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/imagenet'
CONFIGS = sorted(path.stem for path in FOLDER.glob('*.py'))
# Drop path (Twins paper 4.1), images a GPU.
TWINS = {'small': (0.2, 128), 'base': (0.3, 128), 'large': (0.5, 64)}
PAPER_ARCHS = [arch for arch in ARCHS if arch not in ('medium-12', 'large-12')]
XCITS = [(arch, patch_size) for arch in PAPER_ARCHS for patch_size in (8, 16)]
# Millions of parameters, reported by timm and the authors.
PARAMETERS = {
    'twins-svt-small_8xb128_in1k': 24.06,
    'twins-svt-base_8xb128_in1k': 56.07,
    'twins-svt-large_16xb64_in1k': 99.27,
    'xcit-nano-12-p16_8xb128_in1k': 3.05,
    'xcit-tiny-24-p8_8xb128_in1k': 12.11,
    'xcit-small-12-p16_8xb128_in1k-distilled': 26.25,
    'xcit-medium-24-p16_8xb64_in1k-384px': 84.40,
    'xcit-large-24-p8_8xb128_in1k': 188.93,
}


@functools.cache
def read(name: str) -> Config:
    return Config.fromfile(FOLDER / f'{name}.py')


def build(name: str) -> BaseModel:
    from mmpretrain.registry import MODELS

    cfg = read(name)
    model = cfg.model.copy()
    model['data_preprocessor'] = cfg.data_preprocessor
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        return MODELS.build(model)


def steps(cfg: Config, split: str) -> dict[str, Any]:
    return {step.type: step for step in cfg[f'{split}_dataloader'].dataset.pipeline}


def check_deit_augmentation(cfg: Config, size: int) -> None:
    train = steps(cfg, 'train')
    assert list(train) == [
        'LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
        'PackInputs',
    ]
    assert (train['RandomResizedCrop'].scale, train['RandomResizedCrop'].interpolation) == (
        size,
        'bicubic',
    )
    augment = train['RandAugment']
    assert augment.policies == 'timm_increasing'
    assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (2, 9, 0.5)
    assert (train['RandomErasing'].erase_prob, train['RandomErasing'].mode) == (0.25, 'rand')
    assert cfg.model.head.loss.label_smooth_val == 0.1
    mixing = [(a.type, a.alpha) for a in cfg.model.train_cfg.augments]
    assert mixing == [('Mixup', 0.8), ('CutMix', 1.0)]
    assert 'probs' not in cfg.model.train_cfg  # evenly


def check_test_crop(cfg: Config, resize: int, crop: int) -> None:
    for split in ('val', 'test'):
        test = steps(cfg, split)
        assert (test['ResizeEdge'].scale, test['CenterCrop'].crop_size) == (resize, crop)
        assert test['ResizeEdge'].interpolation == 'bicubic'


def check_schedule(cfg: Config, epochs: int) -> None:
    assert cfg.optim_wrapper.optimizer == {
        'type': 'AdamW',
        'lr': 1e-3,
        'weight_decay': 0.05,
        'betas': (0.9, 0.999),
    }
    warmup, cosine = cfg.param_scheduler
    assert (warmup.start_factor * 1e-3, warmup.begin, warmup.end) == (1e-6, 0, 5)
    assert (cosine.eta_min, cosine.begin, cosine.end) == (1e-5, 5, epochs)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.auto_scale_lr.base_batch_size == 1024


def test_every_architecture_has_its_configs() -> None:
    expected = {f'xcit-{arch}-p{p}_8xb128_in1k' for arch, p in XCITS}
    expected |= {f'xcit-{arch}-p{p}_8xb64_in1k-384px' for arch, p in XCITS}
    expected |= {f'twins-svt-{arch}_{1024 // n}xb{n}_in1k' for arch, (_, n) in TWINS.items()}
    expected |= {
        'twins-svt-small_8xb64_in1k-384px',
        'xcit-small-12-p16_8xb128_in1k-distilled',
        'xcit-small-12-p16_1xb64_folders',
    }
    assert set(CONFIGS) == expected


@pytest.mark.parametrize('arch', TWINS)
def test_twins_recipe(arch: str) -> None:
    drop_path_rate, per_gpu = TWINS[arch]
    cfg = read(f'twins-svt-{arch}_{1024 // per_gpu}xb{per_gpu}_in1k')
    assert cfg.model.backbone == {
        'type': 'mmvit_backbones.TwinsSVT',
        'arch': arch,
        'out_indices': (3,),
        'out_norm': False,
        'drop_path_rate': drop_path_rate,
    }
    check_deit_augmentation(cfg, 224)
    check_test_crop(cfg, 256, 224)
    check_schedule(cfg, 300)
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 5.0}
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler'
    assert cfg.train_dataloader.batch_size == per_gpu
    assert 'custom_hooks' not in cfg


@pytest.mark.parametrize(('arch', 'patch_size'), XCITS)
def test_xcit_recipe(arch: str, patch_size: int) -> None:
    cfg = read(f'xcit-{arch}-p{patch_size}_8xb128_in1k')
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch) == ('mmvit_backbones.XCiT', arch)
    assert (backbone.patch_size, backbone.pyramid) == (patch_size, False)
    assert backbone.drop_path_rate == (0.05 if (arch, patch_size) == ('small-12', 16) else 0.1)
    check_deit_augmentation(cfg, 224)
    check_test_crop(cfg, 224, 224)
    check_schedule(cfg, 400)
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_dataloader.sampler == {
        'type': 'RepeatAugSampler',
        'shuffle': True,
        'num_repeats': 3,
    }
    assert cfg.train_dataloader.batch_size == 128
    (ema,) = cfg.custom_hooks
    assert (ema.type, 1 - ema.momentum, ema.evaluate_on_ema) == ('EMAHook', 0.99996, False)


@pytest.mark.parametrize(('arch', 'patch_size'), XCITS)
@pytest.mark.parametrize('suffix', ['8xb128_in1k', '8xb64_in1k-384px'])
def test_xcit_architecture(arch: str, patch_size: int, suffix: str) -> None:
    """Backbone, neck and head fit each other and the named architecture."""
    model = build(f'xcit-{arch}-p{patch_size}_{suffix}')
    known = ARCHS[arch]
    assert model.backbone.arch == known
    assert model.backbone.out_strides == (patch_size,)
    assert model.backbone.out_indices == (known.depth - 1,)
    neck = read(f'xcit-{arch}-p{patch_size}_{suffix}').model.neck
    for key in ('in_channels', 'num_heads', 'layer_scale', 'tokens_norm'):
        assert neck[key] == known.class_attention[key], key
    assert model.head.fc.in_features == known.embed_dims


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.endswith('384px')])
def test_384(name: str) -> None:
    cfg = read(name)
    check_deit_augmentation(cfg, 384)
    check_test_crop(cfg, 384, 384)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 512


@pytest.mark.parametrize(('name', 'reported'), PARAMETERS.items())
def test_parameters_as_reported(name: str, reported: float) -> None:
    counted = sum(p.numel() for p in build(name).parameters()) / 1e6
    assert counted == pytest.approx(reported, abs=0.006)


def no_decay(name: str) -> set[str]:
    model = build(name)
    wrapper = build_optim_wrapper(model, read(name).optim_wrapper.copy())
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]
        for group in wrapper.optimizer.param_groups
        for p in group['params']
        if group['weight_decay'] == 0
    }


def test_twins_without_weight_decay() -> None:
    model = build('twins-svt-small_8xb128_in1k')
    expected = {n for n, p in model.named_parameters() if p.ndim == 1 or '.pos_block.' in n}
    assert no_decay('twins-svt-small_8xb128_in1k') == expected


def test_xcit_without_weight_decay() -> None:
    name = 'xcit-nano-12-p16_8xb128_in1k'
    free = no_decay(name)
    assert free == {
        n for n, p in build(name).named_parameters() if p.ndim == 1 or n == 'neck.cls_token'
    }
    # As in the authors' code, where the module's own wish to spare it is not asked for.
    assert 'backbone.blocks.0.attn.temperature' not in free


def test_distilled_differs_in_the_teacher_alone() -> None:
    plain = read('xcit-small-12-p16_8xb128_in1k')
    distilled = read('xcit-small-12-p16_8xb128_in1k-distilled')
    assert distilled.model.student == plain.model
    assert distilled.model.alpha == 0.5
    assert {key for key in plain if plain[key] != distilled[key]} == {'model'}
    model = build('xcit-small-12-p16_8xb128_in1k-distilled')
    assert model.data_preprocessor.mean is not None
    assert model._teacher.model.model.num_classes == 1000


def test_folders_agree_on_the_classes() -> None:
    cfg = read('xcit-small-12-p16_1xb64_folders')
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == cfg.num_classes
    assert steps(cfg, 'train')['RandAugment']
    model = build('xcit-small-12-p16_1xb64_folders')
    groups = build_optim_wrapper(model, cfg.optim_wrapper.copy()).optimizer.param_groups
    assert {group['lr_scale'] for group in groups} == {0.75**i for i in range(14)}
