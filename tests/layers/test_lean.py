"""Norm and MLP with recomputation against the same layers under plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmvit_backbones.layers import lean as lean_module
from mmvit_backbones.layers.lean import add_residual, norm_mlp
from tests.utils import max_error, randomize


@pytest.fixture
def layers() -> nn.ModuleDict:
    return randomize(
        nn.ModuleDict(
            dict(
                norm=nn.LayerNorm(12),
                fc1=nn.Linear(12, 20),
                fc2=nn.Linear(20, 12),
            )
        )
    )


def lean_mlp(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return norm_mlp(x, m.norm, m.fc1, m.fc2.weight, m.fc2.bias)


def plain_mlp(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return m.fc2(F.gelu(m.fc1(m.norm(x))))


def lean_mlp_block(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return norm_mlp(x, m.norm, m.fc1, m.fc2.weight, m.fc2.bias, residual=True)


def plain_mlp_block(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return x + plain_mlp(m, x)


PAIRS = pytest.mark.parametrize(
    ('lean', 'plain'), [(lean_mlp, plain_mlp), (lean_mlp_block, plain_mlp_block)]
)
Function = Callable[[nn.ModuleDict, Tensor], Tensor]


@PAIRS
@pytest.mark.parametrize(('chunk_rows', 'wide'), [(7, False), (7, True), (100, True)])
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_plain_autograd(
    lean: Function,
    plain: Function,
    chunk_rows: int,
    wide: bool,
    autocast: bool,
    dtype: torch.dtype,
    layers: nn.ModuleDict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bytes_per_row = 20 * (torch.bfloat16 if autocast else dtype).itemsize
    monkeypatch.setattr(lean_module, '_CHUNK_BYTES', chunk_rows * bytes_per_row)
    monkeypatch.setattr(lean_module, '_WIDE', 1 if wide else 1000)
    layers = layers.to(dtype)
    x = torch.randn(6, 5, 12, dtype=dtype, requires_grad=True)
    results = []
    for function in (lean, plain):
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            out = function(layers, x)
        gradients = torch.autograd.grad(
            out.float().pow(2).sum(),
            [x, *layers.parameters()],
        )
        results.append([out, *gradients])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        tolerance = 0.02 if autocast else 1e-5 if dtype == torch.float32 else 1e-12
        assert max_error(ours, expected) <= tolerance * float(expected.detach().abs().max())


@PAIRS
def test_frozen_parts_get_no_gradient(
    lean: Function, plain: Function, layers: nn.ModuleDict
) -> None:
    layers.norm.requires_grad_(False)
    layers.fc1.requires_grad_(False)
    x = torch.randn(2, 3, 12, requires_grad=True)
    expected = torch.autograd.grad(plain(layers, x).pow(2).sum(), x)[0]
    lean(layers, x).pow(2).sum().backward()
    assert x.grad is not None
    assert max_error(x.grad, expected) <= 1e-5 * float(expected.abs().max())
    assert layers.norm.weight.grad is None
    assert layers.fc1.weight.grad is None


def test_keeps_less_for_backward(layers: nn.ModuleDict, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000, 12, requires_grad=True)

    def kept_numbers(function: Function) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(layers, x)
        return sum(count for count in kept.values() if count >= 1000)

    # Tokens, normed tokens, hidden, activated and the norm's two statistics, a token.
    assert kept_numbers(plain_mlp) == 1000 * (12 + 12 + 20 + 20 + 2)
    assert kept_numbers(lean_mlp) == 1000 * 12
    monkeypatch.setattr(lean_module, '_WIDE', 12)
    assert kept_numbers(lean_mlp) == 1000 * (12 + 20)


@pytest.mark.parametrize('wide', [False, True])
def test_counted_operations(
    wide: bool, layers: nn.ModuleDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean_module, '_WIDE', 1 if wide else 1000)
    x = torch.randn(2, 3, 12, requires_grad=True)

    def count(function: Function) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter:
            out = function(layers, x)
            forward = counter.get_total_flops()
            out.sum().backward()
        return forward, counter.get_total_flops()

    forward, total = count(plain_mlp)
    again = 0 if wide else forward // 2
    assert count(lean_mlp) == (forward, total + again)


def test_exported_graph_has_plain_operations(layers: nn.ModuleDict) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return lean_mlp_block(self.layers, x)

    x = torch.randn(2, 3, 12)
    exported = torch.export.export(Block(), (x,))
    assert not any('mmvit' in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), lean_mlp_block(layers, x))


@pytest.mark.parametrize('rows', [0, 1, 100])
def test_without_gradients(rows: int, layers: nn.ModuleDict) -> None:
    x = torch.randn(rows, 12)
    expected = plain_mlp(layers, x).detach()
    with torch.no_grad():
        torch.testing.assert_close(lean_mlp(layers, x), expected, atol=1e-5, rtol=1e-5)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            half = lean_mlp(layers, x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.03)


def test_residual_keeps_the_wider_dtype() -> None:
    x, branch = torch.ones(2), torch.ones(2, dtype=torch.bfloat16)
    assert add_residual(x, branch).dtype == torch.float32
    assert torch.equal(branch, torch.ones(2, dtype=torch.bfloat16))
    assert add_residual(branch, x).data_ptr() == x.data_ptr()


def test_no_images(layers: nn.ModuleDict) -> None:
    x = torch.zeros(0, 5, 12, requires_grad=True)
    out = lean_mlp(layers, x)
    assert out.shape == x.shape
    inputs = [x, *layers.parameters()]
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert float(gradient.abs().sum()) == 0
