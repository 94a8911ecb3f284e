"""Hard distillation with classifiers of mmpretrain on both sides."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mmvit_backbones.distillation import HardDistillationClassifier

CLASSES = 5
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 4])
STUDENT: dict[str, Any] = {
    'type': 'ImageClassifier',
    'backbone': {
        'type': 'mmvit_backbones.TwinsSVT',
        'arch': {
            'embed_dims': (8, 12),
            'stages': ('LG', 'LG'),
            'num_heads': (1, 1),
            'sr_ratios': (2, 1),
            'patch_sizes': (4, 2),
            'peg_after': (0, 0),
        },
        'out_indices': (1,),
        'out_norm': False,
    },
    'neck': {'type': 'mmvit_backbones.NormAveragePooling', 'in_channels': 12},
    'head': {'type': 'LinearClsHead', 'num_classes': CLASSES, 'in_channels': 12},
}
TEACHERS: dict[str, dict[str, Any]] = {
    'ImageClassifier': {
        'type': 'ImageClassifier',
        'backbone': {'type': 'ResNet', 'depth': 18},
        'neck': {'type': 'GlobalAveragePooling'},
        'head': {'type': 'LinearClsHead', 'num_classes': CLASSES, 'in_channels': 512},
    },
    'TimmClassifier': {
        'type': 'TimmClassifier',
        'model_name': 'resnet18',
        'num_classes': CLASSES,
    },
}


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def build(teacher: str = 'ImageClassifier', **options: Any) -> HardDistillationClassifier:
    config = {
        'type': 'mmvit_backbones.HardDistillationClassifier',
        'student': STUDENT,
        'teacher': TEACHERS[teacher],
        **options,
    }
    return MODELS.build(copy.deepcopy(config))


def samples() -> list[DataSample]:
    return [DataSample().set_gt_label(label) for label in LABELS]


@pytest.mark.parametrize('teacher', TEACHERS)
def test_loss(teacher: str) -> None:
    model = build(teacher, alpha=0.3)
    model.init_weights()
    model.train()
    losses = model(IMAGES, samples(), mode='loss')
    with torch.no_grad():
        logits = model(IMAGES)
        named = model._teacher.label(IMAGES)
    assert set(losses) == {'loss', 'loss_teacher'}
    torch.testing.assert_close(losses['loss'], 0.7 * F.cross_entropy(logits, LABELS))
    torch.testing.assert_close(losses['loss_teacher'], 0.3 * F.cross_entropy(logits, named))


def test_teacher_stays_as_it_is() -> None:
    model = build()
    before = copy.deepcopy(model._teacher.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    sum(model(IMAGES, samples(), mode='loss').values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    optimizer.step()
    assert not model._teacher.model.training
    torch.testing.assert_close(model._teacher.model.state_dict(), before, rtol=0, atol=0)


def test_checkpoint_is_one_of_the_plain_student() -> None:
    model, plain = build(), MODELS.build(copy.deepcopy(STUDENT))
    plain.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        expected = plain.eval()(IMAGES, mode='tensor')
        assert torch.equal(model.eval()(IMAGES, mode='tensor'), expected)
    predictions = model(IMAGES, samples(), mode='predict')
    assert [int(p.pred_label) for p in predictions] == expected.argmax(1).tolist()


def test_copies_share_the_teacher_and_not_the_student() -> None:
    model = build()
    average = copy.deepcopy(model)
    assert average._teacher is model._teacher
    assert average.student is not model.student
    assert average.student.backbone is average.backbone
    with torch.no_grad():
        for param in average.parameters():
            param.zero_()
        assert model(IMAGES).any()
        assert not average(IMAGES).any()


@pytest.mark.parametrize('teacher', TEACHERS)
def test_teachers_checkpoint(tmp_path: Path, teacher: str) -> None:
    path = tmp_path / 'teacher.pth'
    source = MODELS.build(copy.deepcopy(TEACHERS[teacher])).eval()
    torch.save({'model': source.state_dict()}, path)
    model = build(teacher, teacher_checkpoint=str(path))
    model.init_weights()
    assert torch.equal(model._teacher.label(IMAGES), source(IMAGES, mode='tensor').argmax(1))
    weights = source.state_dict()
    weights.popitem()
    torch.save(weights, path)
    with pytest.raises(RuntimeError, match='Missing key'):
        model.init_weights()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        model.init_weights()


def test_data_preprocessor_reaches_the_student() -> None:
    model = build(data_preprocessor={'mean': [1.0, 2.0, 3.0], 'std': [1.0, 1.0, 1.0]})
    assert model.data_preprocessor is model.student.data_preprocessor
    assert model.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize('alpha', [-0.1, 1.1])
def test_wrong_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match=r'alpha must lie in \[0, 1\]'):
        build(alpha=alpha)
