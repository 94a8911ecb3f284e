"""A network in one file and one registration: it has a name, loads, converts and decays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from mmvit_backbones import (
    convert_state_dict,
    create_model,
    list_models,
    list_pretrained,
    load_checkpoint,
)
from mmvit_backbones.backbones.base import Backbone, resolve_arch
from mmvit_backbones.checkpoints import CheckpointError, register
from mmvit_backbones.checkpoints.adapting import adapt_stem
from mmvit_backbones.checkpoints.description import Dialect, Network, PublicFile, at
from mmvit_backbones.checkpoints.networks import NETWORKS
from mmvit_backbones.checkpoints.rules import find
from mmvit_backbones.necks import NormAveragePooling
from tests.utils import assert_same, randomize


# The one file: a backbone and its description.
@dataclass(frozen=True)
class ToyArch:
    """Settings of a toy."""

    embed_dims: int
    depth: int
    variant: str = 'paper'


ARCHS = {'tiny': ToyArch(8, 2), 'deep': ToyArch(8, 3)}


class Toy(Backbone):
    """Convolutions with a shift, at stride 4."""

    no_weight_decay_keywords = ('shift',)

    def __init__(self, arch: str = 'tiny', in_channels: int = 3) -> None:
        super().__init__(in_channels, -1, 0, norm_eval=False, with_cp=False, init_cfg=None)
        self.arch = resolve_arch(arch, ARCHS)
        dims = self.arch.embed_dims
        self.out_channels, self.out_strides, self.out_indices = (dims,), (4,), (0,)
        self.stem = nn.Conv2d(in_channels, dims, 4, 4)
        self.shift = nn.Parameter(torch.zeros(1, dims, 1, 1))
        self.blocks = nn.ModuleList(nn.Conv2d(dims, dims, 1) for _ in range(self.arch.depth))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x) + self.shift
        for block in self.blocks:
            x = x + block(x)
        return (x,)

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    def _frozen_modules(self) -> Iterable[nn.Module]:
        return ()

    def _block_of(self, param_name: str) -> int:
        kind, _, rest = param_name.partition('.')
        return int(rest.split('.')[0]) if kind == 'blocks' else -1


TOY = Network(
    name='toy',
    backbone=Toy,
    archs=ARCHS,
    models={f'toy_{name}': {'arch': name} for name in ARCHS},
    arch_settings=('variant', 'embed_dims', 'depth'),
    read_settings=lambda weights: {
        'variant': 'paper',
        'embed_dims': weights['backbone.shift'].shape[1],
        'depth': len(find(weights, 'backbone.blocks.#.weight')),
    },
    last_map=lambda arch: {},
    pooling=lambda backbone: NormAveragePooling(backbone.out_channels[-1]),
    dialects=(
        Dialect(
            'timm',
            (
                ('conv.*', 'backbone.stem.*'),
                ('offset', 'backbone.shift'),
                ('layers.#.*', 'backbone.blocks.#.*'),
                ('norm.*', 'neck.norm.*'),
                ('fc.*', 'head.fc.*'),
            ),
            required=('offset',),
        ),
        Dialect(
            'ours',
            None,
            required=('shift', 'blocks.#.weight'),
            head_prefixes=('neck.norm.', 'head.fc.'),
            variant=None,
        ),
    ),
    adapters={'stem.weight': adapt_stem},
    files=(
        PublicFile(
            'toy_tiny.in1k',
            'toy_tiny',
            at('http://127.0.0.1:9/toy-01234567.pth'),
            64,
            'top-1',
            (12.3,),
            'nobody',
        ),
    ),
)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(TOY)  # the one registration
    yield
    del NETWORKS['toy']


THEIR_NAMES = {
    'backbone.stem.': 'conv.',
    'backbone.shift': 'offset',
    'backbone.blocks.': 'layers.',
    'neck.norm.': 'norm.',
    'head.fc.': 'fc.',
}


def theirs(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A toy classifier's weights as its source would name them, renamed by hand."""
    return {
        key.replace(ours, name, 1): value
        for key, value in weights.items()
        for ours, name in THEIR_NAMES.items()
        if key.startswith(ours)
    }


def test_name() -> None:
    assert list_models()[-2:] == ['toy_tiny', 'toy_deep']
    model = create_model('toy_tiny', num_classes=3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert create_model('toy_deep').num_layers == 3
    assert list(list_pretrained('toy_tiny')) == ['toy_tiny.in1k']
    with pytest.raises(ValueError, match='there is a network'):
        register(TOY)


@pytest.mark.parametrize('in_channels', [3, 5])
def test_loads(tmp_path: Path, in_channels: int) -> None:
    first = randomize(create_model('toy_tiny', num_classes=3))
    torch.save({'model': theirs(first.state_dict())}, tmp_path / 'toy.pth')
    second = create_model('toy_tiny', num_classes=3, in_channels=in_channels)
    report = load_checkpoint(second, tmp_path / 'toy.pth')
    assert (report.dialect, report.missing, report.unexpected) == ('timm', (), ())
    assert report.adapted == (() if in_channels == 3 else ('backbone.stem.weight',))
    if in_channels == 3:
        assert_same(second.state_dict(), first.state_dict())
    backbone = create_model('toy_tiny')
    assert load_checkpoint(backbone, first.state_dict()).dialect == 'ours'
    assert_same(backbone.state_dict(), first.backbone.state_dict())
    with pytest.raises(CheckpointError, match='weights are toy_tiny, the model is toy_deep'):
        load_checkpoint(create_model('toy_deep'), tmp_path / 'toy.pth')


def test_converts() -> None:
    weights = randomize(create_model('toy_tiny', num_classes=3)).state_dict()
    converted = convert_state_dict(weights, 'toy_tiny', 'timm')
    assert_same(converted, theirs(weights))
    assert_same(convert_state_dict(converted, 'toy_tiny', 'ours'), weights)
    with pytest.raises(ValueError, match="dialect 'mmseg' does not have toy"):
        convert_state_dict(weights, 'toy_tiny', 'mmseg')


def test_decays() -> None:
    model = create_model('toy_tiny', num_classes=3)
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
            constructor='mmvit_backbones.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: g for g in wrapper.optimizer.param_groups for p in g['params']}
    assert groups['backbone.stem.weight']['lr'] == 0.5**3
    assert groups['backbone.blocks.1.weight']['lr'] == 0.5
    assert groups['backbone.blocks.1.weight']['weight_decay'] == 0.1
    assert groups['backbone.shift']['weight_decay'] == 0
    assert model.backbone.no_weight_decay() == {'shift'}
