"""CrossCovarianceAttention against each head and channel written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mmvit_backbones.layers.cross_covariance_attention import CrossCovarianceAttention
from tests.utils import max_error, randomize


def written_out(attn: CrossCovarianceAttention, x: Tensor) -> Tensor:
    tokens = x.flatten(1, 2)  # (B, N, C)
    q, k, v = attn.qkv(tokens).chunk(3, dim=-1)
    d = q.shape[-1] // attn.num_heads
    outputs = []
    for head in range(attn.num_heads):
        channels = slice(head * d, (head + 1) * d)
        query, key, value = q[..., channels], k[..., channels], v[..., channels]
        query = query / query.norm(dim=1, keepdim=True)
        key = key / key.norm(dim=1, keepdim=True)
        logits = torch.einsum('bni,bnj->bij', query, key) * attn.temperature[head, 0, 0]
        outputs.append(torch.einsum('bij,bnj->bni', logits.softmax(dim=-1), value))
    return attn.proj(torch.cat(outputs, dim=-1)).view(x.shape)


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (20, 13)])
@pytest.mark.parametrize(('head_dims', 'qkv_bias'), [(4, True), (6, False)])
def test_equals_heads_written_out(size: tuple[int, int], head_dims: int, qkv_bias: bool) -> None:
    attn = randomize(CrossCovarianceAttention(12, 3, head_dims, qkv_bias)).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(attn(x), written_out(attn, x)) <= 1e-12


def test_gradients_equal_those_of_heads_written_out() -> None:
    attn = randomize(CrossCovarianceAttention(12, 3, 4)).double()
    results = []
    for function in (attn, lambda x: written_out(attn, x)):
        x = torch.randn(2, 4, 5, 12, dtype=torch.float64, generator=torch.manual_seed(0))
        x.requires_grad_()
        function(x).pow(3).sum().backward()
        assert x.grad is not None
        results.append([x.grad, *(p.grad for p in attn.parameters())])
        attn.zero_grad()
    for ours, expected in zip(*results, strict=True):
        assert max_error(ours, expected) <= 1e-9


def test_a_channel_of_zeros_is_no_division_by_zero() -> None:
    attn = CrossCovarianceAttention(12, 3, 4, qkv_bias=False)
    x = torch.zeros(1, 2, 2, 12, requires_grad=True)
    out = attn(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_lengths_do_not_overflow_under_autocast(dtype: torch.dtype) -> None:
    """Squares of these values summed over the tokens exceed the largest fp16 number."""
    attn = randomize(CrossCovarianceAttention(8, 2, 4))
    x = 20 * torch.randn(1, 50, 50, 8)
    with torch.no_grad():
        expected = attn(x)
        with torch.autocast('cpu', dtype=dtype):
            out = attn(x)
    assert out.dtype == dtype
    assert float((out.float() - expected).norm() / expected.norm()) < 0.02


def test_dropout_of_weights_acts_while_training_only() -> None:
    attn = CrossCovarianceAttention(12, 3, 4, attn_drop_rate=0.5)
    x = torch.randn(1, 3, 3, 12)
    assert not torch.equal(attn(x), attn(x))
    attn.eval()
    assert torch.equal(attn(x), attn(x))


def run_form(
    attn: CrossCovarianceAttention, x: Tensor, use_gram: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, list[Tensor]]:
    """Return one form's output and the gradients of the input and all parameters."""
    monkeypatch.setattr(attn, '_gram_form_is_cheaper', lambda tokens: use_gram)
    x = x.clone().requires_grad_()
    scale = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype).requires_grad_()
    out = attn(x, scale)
    inputs = [x, scale, *attn.parameters()]
    return out.detach(), list(torch.autograd.grad(out.pow(3).sum(), inputs))


# Tokens below, near and far above the 24 channels.
@pytest.mark.parametrize('size', [(2, 3), (5, 5), (40, 31)])
@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str
)
def test_gram_form_equals_direct_form(
    size: tuple[int, int],
    qkv_bias: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attn = randomize(CrossCovarianceAttention(24, 3, 8, qkv_bias)).to(dtype)
    x = torch.randn(2, *size, 24, dtype=dtype)
    direct, direct_gradients = run_form(attn, x, False, monkeypatch)
    gram, gram_gradients = run_form(attn, x, True, monkeypatch)
    assert max_error(gram, direct) <= tolerance * float(direct.abs().max())
    for ours, expected in zip(gram_gradients, direct_gradients, strict=True):
        assert max_error(ours, expected) <= tolerance * float(expected.abs().max())


def test_form_is_chosen_by_the_number_of_tokens() -> None:
    attn = CrossCovarianceAttention(384, 8, 48)
    assert not attn._gram_form_is_cheaper(torch.empty(1, 196, 384))
    assert attn._gram_form_is_cheaper(torch.empty(1, 1024, 384))


@pytest.mark.parametrize('offset', [0.0, 3.0])
def test_gram_form_is_as_accurate_under_autocast(
    offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an offset, the tokens have a large common part, the hard case for a covariance."""
    attn = randomize(CrossCovarianceAttention(64, 4, 16))
    x = torch.randn(1, 40, 40, 64) + offset
    exact = copy.deepcopy(attn).double()(x.double())
    errors = {}
    for use_gram in (False, True):
        monkeypatch.setattr(attn, '_gram_form_is_cheaper', lambda tokens, use=use_gram: use)
        with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
            errors[use_gram] = float((attn(x).double() - exact).norm() / exact.norm())
    assert errors[True] <= 1.05 * errors[False]
