"""Models by name, against timm and vit-pytorch, and what users do with models."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmvit_backbones import TwinsSVT, XCiT, create_model, list_models, load_checkpoint
from mmvit_backbones.complexity import count_parameters
from mmvit_backbones.models import Classifier
from tests.checkpoints.peers import without_values
from tests.oracles import xcit_from_timm
from tests.utils import max_error, randomize

TWINS = [f'twins_svt_{size}' for size in ('small', 'base', 'large')]
XCITS = [
    f'xcit_{size}_p{patch_size}'
    for size in ('nano_12', 'tiny_12', 'tiny_24', 'small_12', 'small_24', 'medium_24', 'large_24')
    for patch_size in (8, 16)
]
ROBUST = [f'xcit_{size}_12_p{patch_size}' for size in ('medium', 'large') for patch_size in (8, 16)]
SMALLEST = ['twins_svt_small', 'twins_svt_vit_pytorch', 'xcit_nano_12_p16', 'xcit_nano_12_p8']
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def load_classifier(
    model: Classifier, backbone: dict[str, Tensor], neck: dict[str, Tensor], fc: dict[str, Tensor]
) -> Classifier:
    model.double().eval()
    model.backbone.load_state_dict(backbone)
    model.neck.load_state_dict(neck)
    model.head.fc.load_state_dict(fc)
    return model


def take(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def test_names() -> None:
    names = [*TWINS, 'twins_svt_vit_pytorch', *XCITS, *ROBUST, 'xcit_vit_pytorch']
    assert list_models() == names


@pytest.mark.parametrize('name', list_models())
def test_dense_backbone(name: str) -> None:
    with torch.device('meta'):
        model = create_model(name)
        maps = model(torch.empty(1, 3, 64, 96))
    assert isinstance(model, TwinsSVT if name.startswith('twins') else XCiT)
    assert model.out_strides == (4, 8, 16, 32)
    for x, channels, stride in zip(maps, model.out_channels, model.out_strides, strict=True):
        assert x.shape == (1, channels, 64 // stride, 96 // stride)


def test_classifiers_of_small_images_have_no_pyramid() -> None:
    assert 'xcit_small_12_p4' not in list_models()
    with torch.device('meta'):
        assert create_model('xcit_small_12_p4').out_strides == (4, 4, 4, 4)
        assert create_model('xcit_small_12_p4', 10)(torch.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize('name', SMALLEST)
def test_classifier(name: str) -> None:
    model = create_model(name, num_classes=10, drop_path_rate=0.1)
    assert model(IMAGES).shape == (2, 10)
    assert model.features(IMAGES).shape == (2, *model.out_channels)
    assert 0.015 < model.head.fc.weight.std() < 0.025
    assert not model.head.fc.bias.any()
    model.train()(IMAGES).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize('name', SMALLEST)
def test_no_classes_give_features(name: str) -> None:
    model = create_model(name, num_classes=0).eval()
    with torch.no_grad():
        assert torch.equal(model(IMAGES), model.features(IMAGES))
    assert not [n for n in model.state_dict() if n.startswith('head')]


def test_options_go_to_the_backbone() -> None:
    model = create_model('twins_svt_small', num_classes=2, in_channels=1, frozen_stages=4)
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 2)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {n.split('.')[0] for n in trained} == {'neck', 'head'}
    assert create_model('xcit_nano_12_p16', pyramid=False).out_strides == (16,) * 4


@pytest.mark.parametrize(
    'options', [{'arch': 'base'}, {'num_classes': 2, 'out_indices': (3,)}, {'no_such': 1}]
)
def test_wrong_options(options: dict) -> None:
    with pytest.raises(TypeError):
        create_model('twins_svt_small', **options)


def test_wrong_names_and_numbers() -> None:
    with pytest.raises(ValueError, match=r'did you mean .*xcit_small_12_p16'):
        create_model('xcit_small_12_p1')
    with pytest.raises(ValueError, match=r"got 'resnet': list_models\(\) gives"):
        create_model('resnet')
    with pytest.raises(ValueError, match='num_classes must be 0 or more, got -1'):
        create_model('xcit_nano_12_p16', num_classes=-1)


@pytest.mark.parametrize('name', TWINS)
def test_twins_logits_equal_timms(name: str) -> None:
    reference = randomize(timm.create_model(name, num_classes=7)).double().eval()
    weights = reference.state_dict()
    neck = {f'norm.{k}': v for k, v in take(weights, 'norm.').items()}
    inner = {k: v for k, v in weights.items() if not k.startswith(('norm.', 'head.'))}
    model = create_model(name, num_classes=7)
    load_classifier(model, inner, neck, take(weights, 'head.'))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(model(x), reference(x)) <= 1e-9


@pytest.mark.parametrize('name', XCITS)
def test_xcit_logits_equal_timms(name: str) -> None:
    """At the sizes above small with two blocks: the rest of the depth is more of the same."""
    is_large = name.startswith(('xcit_medium', 'xcit_large'))
    cut = {'depth': 2} if is_large else {}
    reference = randomize(timm.create_model(f'{name}_224', num_classes=7, **cut)).double().eval()
    backbone, neck = xcit_from_timm(reference.state_dict())
    model = create_model(name, num_classes=7)
    if is_large:
        del model.backbone.blocks[2:]
        model.backbone.out_indices = (1,)
    load_classifier(model, backbone, neck, take(reference.state_dict(), 'head.'))
    x = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(model(x), reference(x)) <= 1e-9


def test_vit_pytorch_xcit_by_name() -> None:
    """The structure by its own names of sizes, with that package's weights."""
    from vit_pytorch.xcit import XCiT as Reference

    reference = Reference(
        image_size=128,
        patch_size=16,
        num_classes=10,
        dim=96,
        depth=8,
        cls_depth=2,
        heads=4,
        mlp_dim=192,
        dim_head=32,
    )
    reference = randomize(reference).double().eval()
    sizes = dict(
        image_size=128,
        patch_size=16,
        embed_dims=96,
        depth=8,
        num_heads=4,
        mlp_dims=192,
        head_dims=32,
        cls_depth=2,
    )
    model = create_model('xcit_vit_pytorch', num_classes=10, **sizes).double().eval()
    assert count_parameters(model) == count_parameters(reference)
    report = load_checkpoint(model, reference.state_dict())
    assert (report.dialect, report.missing, report.unexpected) == ('vit-pytorch', (), ())
    x = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(model(x), reference(x)) <= 1e-9

    backbone = create_model('xcit_vit_pytorch', **sizes)
    assert [tuple(m.shape[1:]) for m in backbone(torch.randn(1, 3, 128, 128))] == [
        (96, 32, 32),
        (96, 16, 16),
        (96, 8, 8),
        (96, 4, 4),
    ]
    report = load_checkpoint(backbone, reference.state_dict())
    assert {name.split('.')[0] for name in report.missing} == {'pyramid'}
    single = create_model('xcit_vit_pytorch', pyramid=False, **sizes).double().eval()
    assert load_checkpoint(single, reference.state_dict()).missing == ()
    with torch.no_grad():
        assert max_error(single(x)[-1], model.forward_features(x)) == 0


def test_sizes_of_vit_pytorchs_xcit() -> None:
    model = create_model('xcit_vit_pytorch', num_classes=2, depth=2, image_size=64, patch_size=4)
    assert model(IMAGES).shape == (2, 2)
    assert model.out_strides == (4,)
    with pytest.raises(ValueError, match='patch_size must divide image_size 100, got 16'):
        create_model('xcit_vit_pytorch', image_size=100)
    with pytest.raises(TypeError, match='dims'):
        create_model('xcit_vit_pytorch', dims=64)


def test_vit_pytorch_twins_logits() -> None:
    from vit_pytorch.twins_svt import TwinsSVT as Reference

    reference = randomize(Reference(num_classes=7)).double().eval()
    model = create_model('twins_svt_vit_pytorch', num_classes=7)
    report = load_checkpoint(model, reference.state_dict())
    assert not report.missing
    assert not report.unexpected
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(model.double().eval()(x), reference(x)) <= 1e-9


def test_neck_of_vit_pytorchs_twins_has_no_norm() -> None:
    has_norm = {}
    for name in ('twins_svt_small', 'twins_svt_vit_pytorch'):
        with without_values():
            neck = create_model(name, num_classes=2).neck
        has_norm[name] = bool(list(neck.parameters()))
    assert has_norm == {'twins_svt_small': True, 'twins_svt_vit_pytorch': False}


def same(first: nn.Module, second: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(first.eval()(IMAGES), second.eval()(IMAGES))


@pytest.mark.parametrize('name', ['twins_svt_small', 'xcit_nano_12_p16'])
def test_copies(name: str) -> None:
    model = create_model(name, num_classes=3)
    assert same(model, copy.deepcopy(model))
    assert same(model, pickle.loads(pickle.dumps(model)))
    other = create_model(name, num_classes=3)
    assert not same(model, other)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(model, other)


@pytest.mark.parametrize('name', ['twins_svt_small', 'xcit_nano_12_p16'])
def test_average_over_training(name: str) -> None:
    model = create_model(name, num_classes=3)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(model)
    assert same(average, model)


# A hint about speed: the strides of a dimension of size 1 differ, and mean nothing.
@pytest.mark.filterwarnings('ignore:Grad strides do not match bucket view strides')
def test_data_parallel_with_every_parameter_in_use(tmp_path: Path) -> None:
    """DDP fails in the second step if a parameter got no gradient in the first."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path / "rendezvous"}', rank=0, world_size=1
    )
    try:
        for name in ('twins_svt_small', 'xcit_nano_12_p16'):
            model = nn.parallel.DistributedDataParallel(create_model(name, num_classes=3))
            for _ in range(2):
                model(IMAGES).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_state_dicts_are_those_of_mmpretrain() -> None:
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    twins = create_model('twins_svt_small', num_classes=5)
    config = dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmvit_backbones.TwinsSVT', arch='small', out_indices=(3,), out_norm=False
        ),
        neck=dict(type='mmvit_backbones.NormAveragePooling', in_channels=512),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=512),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        classifier = MODELS.build(config).eval()
    classifier.load_state_dict(twins.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(classifier(IMAGES, mode='tensor'), twins.eval()(IMAGES))


@pytest.mark.parametrize('name', ['twins_svt_small', 'xcit_nano_12_p16'])
def test_timm_habits_of_a_backbone(name: str) -> None:
    model = create_model(name)
    info = model.feature_info
    assert info.channels() == list(model.out_channels)
    assert info.reduction() == [4, 8, 16, 32]
    assert [entry['module'] for entry in info] == info.module_name()
    assert (info.channels(-1), info.reduction([0, 2])) == (model.out_channels[-1], [4, 16])
    modules = dict(model.named_modules())
    assert all(module in modules for module in info.module_name())
    with torch.no_grad():
        maps = model.eval().forward_features(IMAGES)
        assert all(torch.equal(a, b) for a, b in zip(maps, model(IMAGES), strict=True))


@pytest.mark.parametrize('name', ['twins_svt_small', 'xcit_nano_12_p16'])
def test_timm_habits_of_a_classifier(name: str) -> None:
    model = create_model(name, num_classes=3).eval()
    theirs = timm.create_model(name if 'twins' in name else f'{name}_224', num_classes=3).eval()
    (last,) = model.feature_info
    assert last['num_chs'] == theirs.feature_info[-1]['num_chs']
    assert last['reduction'] == theirs.feature_info[-1]['reduction']
    assert last['module'] in dict(model.named_modules())
    assert model.num_features == theirs.num_features
    assert resolve_model_data_config(model) == resolve_model_data_config(theirs)
    class_token = {'neck.cls_token'} if 'xcit' in name else set()
    backbone = {f'backbone.{name}' for name in model.backbone.no_weight_decay()}
    assert backbone
    assert model.no_weight_decay() == backbone | class_token
    with torch.no_grad():
        features = model.forward_features(IMAGES)
        assert features.shape == (2, last['num_chs'], *(64 // last['reduction'],) * 2)
        assert torch.equal(model.forward_head(features), model(IMAGES))
        assert torch.equal(model.forward_head(features, pre_logits=True), model.features(IMAGES))
    assert model.get_classifier() is model.head.fc
    model.double().reset_classifier(7)
    assert model.get_classifier().weight.shape == (7, last['num_chs'])
    assert model(IMAGES.double()).shape == (2, 7)
    model.reset_classifier(0)
    assert model(IMAGES.double()).shape == (2, last['num_chs'])
    assert model.num_classes == 0


@pytest.mark.parametrize('num_classes', [None, 3])
def test_grad_checkpointing(num_classes: int | None) -> None:
    """It saves tensors between forward and backward, and changes no gradient."""
    model = create_model('xcit_nano_12_p16', num_classes=num_classes).eval()
    results = {}
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        saved = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal saved
            saved += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = model(IMAGES)
        loss = out.sum() if num_classes else sum(m.sum() for m in out)
        results[enable] = saved, torch.autograd.grad(loss, list(model.parameters()))
    assert results[True][0] < 0.5 * results[False][0]
    for a, b in zip(results[True][1], results[False][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'theirs'),
    [
        ('twins_svt_base', 'twins_svt_base.in1k'),
        ('xcit_tiny_24_p8', 'xcit_tiny_24_p8_224.fb_in1k'),
    ],
)
def test_pretrained_cfg_is_timms(name: str, theirs: str) -> None:
    with without_values():
        ours = create_model(name, num_classes=2).pretrained_cfg
        assert create_model(name).pretrained_cfg == ours
    expected = timm.get_pretrained_cfg(theirs)
    for key in ('input_size', 'interpolation', 'crop_pct', 'mean', 'std', 'num_classes'):
        assert ours[key] == getattr(expected, key), key
    assert ours['url'] == f'https://huggingface.co/timm/{theirs}/resolve/main/model.safetensors'
    assert (ours['architecture'], ours['tag']) == (name, 'in1k')
