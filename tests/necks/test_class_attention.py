"""ClassAttentionPooling: its contract and quirks; its values are compared in test_xcit.py."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones.backbones.xcit import ARCHS
from mmvit_backbones.layers.variant import VARIANTS
from mmvit_backbones.necks import ClassAttentionPooling
from mmvit_backbones.registry import MODELS
from tests.utils import randomize


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('tokens_norm', [True, False])
def test_every_parameter_gets_a_gradient(variant: str, tokens_norm: bool) -> None:
    neck = randomize(
        ClassAttentionPooling(12, 3, variant=variant, tokens_norm=tokens_norm)
    ).double()
    maps = [torch.randn(2, 12, 3, 5, dtype=torch.float64) for _ in range(2)]
    outputs = neck(maps)
    assert isinstance(outputs, tuple)
    assert [tuple(out.shape) for out in outputs] == [(2, 12)]
    outputs[0].pow(3).sum().backward()
    without = [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_pools_the_last_map_only_and_ignores_the_order_of_its_tokens(variant: str) -> None:
    neck = randomize(ClassAttentionPooling(12, 3, variant=variant)).double().eval()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    (expected,) = neck([x])
    torch.testing.assert_close(neck([torch.zeros(1), x])[0], expected)
    torch.testing.assert_close(neck([x.flip(2)])[0], expected)
    assert not torch.allclose(neck([2 * x])[0], expected)


def test_tokens_norm_reaches_the_class_token_through_a_later_layer() -> None:
    x = torch.randn(2, 12, 3, 5)
    pooled = []
    for num_layers in (1, 2):
        for tokens_norm in (True, False):
            neck = ClassAttentionPooling(12, 3, num_layers=num_layers, tokens_norm=tokens_norm)
            pooled.append(randomize(neck).eval()([x])[0])
    assert torch.equal(pooled[0], pooled[1])
    assert not torch.allclose(pooled[2], pooled[3])


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_dropout_acts_while_training_only(variant: str, rate: str) -> None:
    neck = randomize(ClassAttentionPooling(12, 3, variant=variant, **{rate: 0.5}))
    x = torch.randn(2, 12, 3, 5)
    assert not torch.equal(neck([x])[0], neck([x])[0])
    neck.eval()
    assert torch.equal(neck([x])[0], neck([x])[0])


def test_layer_scale() -> None:
    def scales(value: float | None) -> list[float]:
        neck = ClassAttentionPooling(4, 1, num_layers=25, layer_scale=value)
        return [float(block.gamma1[0].detach()) for block in neck.cls_attn_blocks]

    assert scales(1e-5) == pytest.approx([1e-5] * 25)
    assert scales(None) == pytest.approx([0.1] * 18 + [1e-5] * 6 + [1e-6])


@pytest.mark.parametrize('name', ARCHS)
@pytest.mark.parametrize('named', [True, False])
def test_an_arch_builds_it(name: str, named: bool) -> None:
    arch = ARCHS[name]
    arguments = dict(arch=name) if named else arch.class_attention
    with torch.device('meta'):
        neck = MODELS.build(dict(type='mmvit_backbones.ClassAttentionPooling', **arguments))
        (pooled,) = neck([torch.zeros(1, arch.embed_dims, 2, 2)])
    assert pooled.shape == (1, arch.embed_dims)
    assert [block.tokens_norm for block in neck.cls_attn_blocks] == [name != 'nano-12'] * 2
    assert {block.attn.num_heads for block in neck.cls_attn_blocks} == {arch.num_heads}


def test_an_arch_sets_the_layer_scale() -> None:
    for block in ClassAttentionPooling(arch='tiny-24').cls_attn_blocks:
        assert (block.gamma1 == 1e-5).all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(variant='timm'), "variant must be one of .* got 'timm'"),
        (dict(num_layers=0), 'num_layers must be at least 1, got 0'),
        (dict(num_heads=5), 'num_heads must divide in_channels 12 .* got 5'),
        (dict(num_heads=None), 'either arch or both in_channels and num_heads .* num_heads None'),
        (dict(arch='nano-12'), "give either it or them, got arch 'nano-12', in_channels 12"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassAttentionPooling(**{'in_channels': 12, 'num_heads': 3, **arguments})
