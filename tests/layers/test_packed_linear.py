"""PackedLinear against the linear layer whose parameters it takes over."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from mmvit_backbones.layers import packed_linear
from mmvit_backbones.layers.lean import norm_mlp
from mmvit_backbones.layers.mlp import MLP
from mmvit_backbones.layers.packed_linear import PackedLinear, packed_norm_mlp
from tests.utils import max_error, randomize


def build(bias: bool = True) -> tuple[nn.Linear, PackedLinear]:
    linear = nn.Linear(24, 40, bias)
    randomize(linear)
    return linear, PackedLinear(linear)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('activate', [True, False])
@pytest.mark.parametrize('shape', [(24,), (5, 24), (2, 3, 7, 24)])
def test_equals_the_linear_layer(bias: bool, activate: bool, shape: tuple[int, ...]) -> None:
    linear, packed = build(bias)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = linear(x)
        expected = nn.functional.gelu(expected) if activate else expected
        assert max_error(packed(x, activate), expected) <= 1e-5
    assert packed._packed


@pytest.mark.parametrize('activate', [True, False])
def test_equals_it_under_autocast(activate: bool) -> None:
    linear, packed = build()
    x = torch.randn(50, 24)
    with torch.no_grad():
        exact = linear(x)
        exact = nn.functional.gelu(exact) if activate else exact
        with torch.autocast('cpu', torch.bfloat16):
            out = packed(x, activate)
    assert out.dtype == torch.bfloat16
    assert float((out - exact).norm() / exact.norm()) < 0.01


def test_gradients_and_double_precision_use_the_weight_itself() -> None:
    linear, packed = build()
    x = torch.randn(5, 24, requires_grad=True)
    packed(x, activate=True).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert max_error(packed.double()(x.double()), linear.double()(x.double())) == 0
    assert not packed._packed


def test_a_changed_weight_is_noticed() -> None:
    linear, packed = build()
    x = torch.randn(5, 24)
    with torch.no_grad():
        packed(x)
        linear.weight.mul_(2)
        assert max_error(packed(x), linear(x)) <= 1e-5
        packed.load_state_dict(nn.Linear(24, 40).state_dict())
        assert max_error(packed(x), linear(x)) <= 1e-5
        del linear
        for _ in range(5):  # new weights could lie where freed ones did
            packed.weight = nn.Parameter(torch.randn(40, 24))
            assert max_error(packed(x), nn.functional.linear(x, packed.weight, packed.bias)) <= 1e-5


def test_copies_and_files_hold_no_packed_weight() -> None:
    _, packed = build()
    x = torch.randn(5, 24)
    with torch.no_grad():
        out = packed(x)
        file = io.BytesIO()
        torch.save(packed, file)
        file.seek(0)
        for other in (copy.deepcopy(packed), torch.load(file, weights_only=False)):
            assert not other._packed
            assert max_error(other(x), out) == 0
    assert list(packed.state_dict()) == ['weight', 'bias']


@pytest.mark.parametrize('chunk_bytes', [1, 4000, 2**24])
def test_mlp_by_parts(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmvit_backbones.layers.lean._CHUNK_BYTES', chunk_bytes)
    mlp, norm = randomize(MLP(24, 40)).eval(), randomize(nn.LayerNorm(24))
    x = torch.randn(2, 13, 24)
    fc1, fc2 = PackedLinear(mlp.fc1), PackedLinear(mlp.fc2)
    with torch.no_grad():
        expected = norm_mlp(x, norm, mlp.fc1, mlp.fc2.weight, mlp.fc2.bias, residual=True)
        assert max_error(packed_norm_mlp(x, norm, fc1, fc2), expected) <= 1e-5


def test_mlp_of_packed_layers_takes_that_path(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(*args: object) -> torch.Tensor:
        calls.append(args)
        return packed_norm_mlp(*args)

    monkeypatch.setattr('mmvit_backbones.layers.mlp.packed_norm_mlp', record)
    mlp, norm = MLP(24, 40).eval(), nn.LayerNorm(24)
    mlp.fc1, mlp.fc2 = PackedLinear(mlp.fc1), PackedLinear(mlp.fc2)
    x = torch.randn(2, 13, 24)
    with torch.no_grad():
        out = mlp(x, norm, residual=True)
    assert len(calls) == 1
    assert max_error(out, mlp(x, norm, residual=True)) <= 1e-5  # with gradients, without packing
    assert len(calls) == 1
    assert not packed_linear.can_pack(x)
