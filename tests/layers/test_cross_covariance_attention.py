"""CrossCovarianceAttention against each head and channel written out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmvit_backbones.layers.cross_covariance_attention import CrossCovarianceAttention
from mmvit_backbones.layers.gram_attention import _gram_matrix, gram_attention
from tests.utils import max_error, randomize


def build(
    dims: int, num_heads: int, head_dims: int, affine: bool = True, **kwargs: float
) -> tuple[CrossCovarianceAttention, nn.LayerNorm]:
    """Return an attention and the norm before it."""
    norm = nn.LayerNorm(dims, elementwise_affine=affine)
    attn = CrossCovarianceAttention(dims, num_heads, head_dims, **kwargs)
    return randomize(attn), randomize(norm, seed=1)


def written_out(attn: CrossCovarianceAttention, x: Tensor, norm: nn.LayerNorm) -> Tensor:
    q, k, v = attn.qkv(norm(x)).chunk(3, dim=-1)
    d = q.shape[-1] // attn.num_heads
    outputs = []
    for head in range(attn.num_heads):
        channels = slice(head * d, (head + 1) * d)
        query, key, value = q[..., channels], k[..., channels], v[..., channels]
        query = query / query.norm(dim=1, keepdim=True)
        key = key / key.norm(dim=1, keepdim=True)
        logits = torch.einsum('bni,bnj->bij', query, key) * attn.temperature[head, 0, 0]
        outputs.append(torch.einsum('bij,bnj->bni', logits.softmax(dim=-1), value))
    return attn.proj(torch.cat(outputs, dim=-1))


@pytest.mark.parametrize('num_tokens', [1, 15, 260])
@pytest.mark.parametrize(('head_dims', 'qkv_bias'), [(4, True), (6, False)])
def test_equals_heads_written_out(num_tokens: int, head_dims: int, qkv_bias: bool) -> None:
    attn, norm = build(12, 3, head_dims, qkv_bias=qkv_bias)
    x = torch.randn(2, num_tokens, 12, dtype=torch.float64)
    with torch.no_grad():
        attn, norm = attn.double(), norm.double()
        assert max_error(attn(x, norm), written_out(attn, x, norm)) <= 1e-12


def test_gradients_equal_those_of_heads_written_out() -> None:
    attn, norm = build(12, 3, 4)
    attn, norm = attn.double(), norm.double()
    results = []
    for function in (attn, lambda x, norm: written_out(attn, x, norm)):
        x = torch.randn(2, 20, 12, dtype=torch.float64, generator=torch.manual_seed(0))
        x.requires_grad_()
        inputs = [x, *attn.parameters(), *norm.parameters()]
        results.append(torch.autograd.grad(function(x, norm).pow(3).sum(), inputs))
    for ours, expected in zip(*results, strict=True):
        assert max_error(ours, expected) <= 1e-9


@pytest.mark.parametrize('use_gram', [False, True])
def test_a_channel_of_zeros_is_no_division_by_zero(
    use_gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attn = CrossCovarianceAttention(12, 3, 4, qkv_bias=False)
    monkeypatch.setattr(attn, '_gram_form_is_cheaper', lambda tokens: use_gram)
    x = torch.zeros(1, 4, 12, requires_grad=True)
    out = attn(x, nn.LayerNorm(12))
    out.sum().backward()
    assert out.isfinite().all()
    for tensor in (x, *attn.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_lengths_do_not_overflow_under_autocast(dtype: torch.dtype) -> None:
    """Squares of these values summed over the tokens exceed the largest fp16 number."""
    attn, norm = build(8, 2, 4)
    with torch.no_grad():
        norm.weight.mul_(20)
        x = torch.randn(1, 2500, 8)
        expected = attn(x, norm)
        with torch.autocast('cpu', dtype=dtype):
            out = attn(x, norm)
    assert out.dtype == dtype
    assert float((out.float() - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize('num_tokens', [9, 90])
@pytest.mark.parametrize('kind', ['attn_drop_rate', 'drop_rate'])
def test_dropout_acts_while_training_only(num_tokens: int, kind: str) -> None:
    attn, norm = build(12, 3, 4, **{kind: 0.5})
    x = torch.randn(1, num_tokens, 12)
    outputs = [attn(x, norm, residual=True) for _ in range(2)]
    assert not torch.equal(*outputs)
    attn.eval()
    outputs = [attn(x, norm, residual=True) for _ in range(2)]
    assert torch.equal(*outputs)


def run_form(
    attn: CrossCovarianceAttention,
    norm: nn.LayerNorm,
    x: Tensor,
    use_gram: bool,
    monkeypatch: pytest.MonkeyPatch,
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Return one form's output and the gradients of the input and all parameters."""
    monkeypatch.setattr(attn, '_gram_form_is_cheaper', lambda tokens: use_gram)
    x = x.clone().requires_grad_()
    scale = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype).requires_grad_()
    out = attn(x, norm, scale, residual)
    inputs = [x, scale, *attn.parameters(), *norm.parameters()]
    return out.detach().double(), list(torch.autograd.grad(out.double().pow(3).sum(), inputs))


# Tokens below, near and far above the 24 channels.
@pytest.mark.parametrize('num_tokens', [6, 25, 1240])
@pytest.mark.parametrize(
    ('qkv_bias', 'affine', 'residual'),
    [(True, True, True), (False, True, False), (True, False, False)],
)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str
)
def test_gram_form_equals_direct_form(
    num_tokens: int,
    qkv_bias: bool,
    affine: bool,
    residual: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attn, norm = build(24, 3, 8, affine, qkv_bias=qkv_bias)
    attn, norm = attn.to(dtype), norm.to(dtype)
    x = torch.randn(2, num_tokens, 24, dtype=dtype)
    direct, direct_gradients = run_form(attn, norm, x, False, monkeypatch, residual)
    gram, gram_gradients = run_form(attn, norm, x, True, monkeypatch, residual)
    assert max_error(gram, direct) <= tolerance * float(direct.abs().max())
    for ours, expected in zip(gram_gradients, direct_gradients, strict=True):
        assert max_error(ours, expected) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize('dims', [64, 130, 192, 384])
def test_gram_matrix_by_blocks(dims: int) -> None:
    tokens = torch.randn(2, 30, dims, dtype=torch.float64)
    with torch.no_grad():
        gram = _gram_matrix(tokens)
    assert max_error(gram, torch.einsum('bnc,bnd->bcd', tokens, tokens)) <= 1e-12


def test_form_is_chosen_by_the_number_of_tokens() -> None:
    """A backward pass saves more than it adds, and reduced precision takes from what is saved."""
    attn = CrossCovarianceAttention(384, 8, 48)

    def first_gram(dtype: torch.dtype) -> int:
        return next(
            n
            for n in range(1, 3000)
            if attn._gram_form_is_cheaper(torch.empty(1, n, 384, dtype=dtype))
        )

    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            without_gradients = first_gram(dtype)
        assert 384 < first_gram(dtype) < without_gradients < 2000
    assert first_gram(torch.float32) < first_gram(torch.bfloat16)


def test_gpus_use_the_direct_form_in_reduced_precision() -> None:
    attn = CrossCovarianceAttention(384, 8, 48)
    for dtype, use_gram in ((torch.float32, True), (torch.float16, False)):
        x = torch.empty(1, 10_000, 384, dtype=dtype, device='meta')
        assert attn._gram_form_is_cheaper(x) == use_gram


@pytest.mark.parametrize('offset', [0.0, 3.0])
def test_gram_form_is_as_accurate_under_autocast(
    offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an offset, the tokens have a large common part, the hard case for a covariance."""
    attn, norm = build(64, 4, 16)
    with torch.no_grad():
        norm.bias.add_(offset)
    x = torch.randn(1, 1600, 64)
    exact, exact_gradients = run_form(
        copy.deepcopy(attn).double(), copy.deepcopy(norm).double(), x.double(), False, monkeypatch
    )

    def error(ours: Tensor, expected: Tensor) -> float:
        return float((ours - expected).norm() / expected.norm())

    errors, gradient_errors = {}, {}
    for use_gram in (False, True):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out, gradients = run_form(attn, norm, x, use_gram, monkeypatch)
        errors[use_gram] = error(out, exact)
        gradient_errors[use_gram] = [
            error(ours.double(), expected)
            for ours, expected in zip(gradients, exact_gradients, strict=True)
        ]
    assert errors[True] <= 1.05 * errors[False]
    assert sum(gradient_errors[True]) <= 1.05 * sum(gradient_errors[False])


def test_counted_operations_are_those_that_the_choice_of_form_counts() -> None:
    dims, num_heads, head_dims, num_tokens, batch_size = 24, 3, 8, 200, 2
    attn, norm = build(dims, num_heads, head_dims)
    x = torch.randn(batch_size, num_tokens, dims, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = attn(x, norm, residual=True)
        forward = counter.get_total_flops()
        out.sum().backward()
        total = counter.get_total_flops()
    tokens, inner = batch_size * num_tokens, batch_size * num_heads * head_dims * dims
    biases = 0.02  # products with vectors
    for counted, expected in (
        (forward, 2 * tokens * dims**2 + inner * (3 * dims + 5 * head_dims)),
        (total, 5 * tokens * dims**2 + inner * (7 * dims + 16 * head_dims)),
    ):
        assert 2 * expected <= counted <= (1 + biases) * 2 * expected


def count_kept(function: Callable[[], Tensor], size: int) -> int:
    """Count the tensors of at least a size that a function keeps for backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _graph = function()
    return sum(numel >= size for numel in kept.values())


def test_gram_form_keeps_its_input_alone() -> None:
    attn, norm = build(24, 3, 8)
    x = torch.randn(1, 2000, 24, requires_grad=True)
    assert count_kept(lambda: attn(x, norm, residual=True), x.numel()) == 1
    assert (
        count_kept(lambda: attn._direct_form(norm(x), attn.proj.weight, attn.proj.bias), x.numel())
        > 1
    )


def test_gram_form_leaves_its_input_alone() -> None:
    attn, norm = build(24, 3, 8)
    x = torch.randn(2, 100, 24)
    before = x.clone()
    with torch.no_grad():
        out = attn(x, norm, residual=True)
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()


def test_frozen_parameters_get_no_gradient() -> None:
    attn, norm = build(24, 3, 8)
    attn.requires_grad_(False)
    norm.requires_grad_(False)
    x = torch.randn(1, 100, 24, requires_grad=True)
    attn(x, norm).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in [*attn.parameters(), *norm.parameters()])


def test_second_derivative_is_refused() -> None:
    attn, norm = build(24, 3, 8)
    x = torch.randn(1, 100, 24, requires_grad=True)
    out = gram_attention(x, norm, attn.qkv, attn.temperature, attn.proj.weight, attn.proj.bias)
    (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@pytest.mark.parametrize('use_gram', [False, True])
def test_no_images(use_gram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attn, norm = build(24, 3, 8)
    x = torch.zeros(0, 100, 24)
    out, gradients = run_form(attn, norm, x, use_gram, monkeypatch, residual=True)
    assert out.shape == x.shape
    assert all(float(gradient.abs().sum()) == 0 for gradient in gradients)
