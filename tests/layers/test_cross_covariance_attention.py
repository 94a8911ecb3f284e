"""CrossCovarianceAttention against each head and channel written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmvit_backbones.layers.cross_covariance_attention import CrossCovarianceAttention
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
        assert max_error(attn(norm(x)), written_out(attn, x, norm)) <= 1e-12


def test_gradients_equal_those_of_heads_written_out() -> None:
    attn, norm = build(12, 3, 4)
    attn, norm = attn.double(), norm.double()
    results = []
    for function in (lambda x, norm: attn(norm(x)), lambda x, norm: written_out(attn, x, norm)):
        x = torch.randn(2, 20, 12, dtype=torch.float64, generator=torch.manual_seed(0))
        x.requires_grad_()
        inputs = [x, *attn.parameters(), *norm.parameters()]
        results.append(torch.autograd.grad(function(x, norm).pow(3).sum(), inputs))
    for ours, expected in zip(*results, strict=True):
        assert max_error(ours, expected) <= 1e-9


def test_a_channel_of_zeros_is_no_division_by_zero() -> None:
    attn = CrossCovarianceAttention(12, 3, 4, qkv_bias=False)
    x = torch.zeros(1, 4, 12, requires_grad=True)
    out = attn(nn.LayerNorm(12)(x))
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
        expected = attn(norm(x))
        with torch.autocast('cpu', dtype=dtype):
            out = attn(norm(x))
    assert out.dtype == dtype
    assert float((out.float() - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize('num_tokens', [9, 90])
@pytest.mark.parametrize('kind', ['attn_drop_rate', 'drop_rate'])
def test_dropout_acts_while_training_only(num_tokens: int, kind: str) -> None:
    attn, norm = build(12, 3, 4, **{kind: 0.5})
    x = torch.randn(1, num_tokens, 12)
    outputs = [attn(norm(x)) for _ in range(2)]
    assert not torch.equal(*outputs)
    attn.eval()
    outputs = [attn(norm(x)) for _ in range(2)]
    assert torch.equal(*outputs)
