"""The kernels of functions of tensors, against the functions themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmvit_backbones.kernels import fused_attention as fused
from mmvit_backbones.kernels import padding
from mmvit_backbones.kernels.modes import COMPILE, INFERENCE, TRAINING
from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.tokens import crop, pad_to_multiple
from tests.utils import max_error

attention_reference = attention.__wrapped__  # type: ignore[attr-defined]
pad_reference = pad_to_multiple.__wrapped__  # type: ignore[attr-defined]
crop_reference = crop.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize('masked', [False, True])
def test_fused_attention(masked: bool) -> None:
    torch.manual_seed(0)
    mask = None
    if masked:
        mask = torch.rand(2, 1, 1, 7) > 0.4
        mask[..., 0] = True
    q = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64)
    results = []
    for run in (attention_reference, lambda *args: fused.run(TRAINING, *args)):
        out = run(q, k.requires_grad_(), v.requires_grad_(), nn.Dropout(0.0), mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for ours, expected in zip(*results, strict=True):
        assert max_error(ours, expected) <= 1e-12


def test_fused_attention_drops_weights_in_training_mode_only() -> None:
    q = torch.randn(1, 1, 64, 8, dtype=torch.float64)
    dropout = nn.Dropout(0.5)
    first, second = (fused.run(INFERENCE, q, q, q, dropout) for _ in range(2))
    assert not torch.equal(first, second)
    dropout.eval()
    expected = attention_reference(q, q, q, dropout)
    assert max_error(fused.run(INFERENCE, q, q, q, dropout), expected) <= 1e-12
    assert fused.refusal(INFERENCE, q, q, q, nn.AlphaDropout()) is not None


@pytest.mark.parametrize(
    ('shape', 'dtype', 'trains', 'infers'),
    [
        ((800, 2, 49), torch.bfloat16, False, False),  # windows
        ((1400, 2, 49), torch.bfloat16, False, True),
        ((2, 8, 256), torch.bfloat16, False, False),
        ((2, 2, 4096), torch.bfloat16, True, True),
        ((800, 2, 49), torch.float32, True, True),
    ],
)
def test_fused_attention_in_half_precision(
    shape: tuple[int, int, int], dtype: torch.dtype, trains: bool, infers: bool
) -> None:
    dropout = nn.Dropout(0.0)
    q = torch.empty(*shape, 8)
    with torch.autocast('cpu', dtype, enabled=dtype == torch.bfloat16):
        assert (fused.refusal(TRAINING, q, q, q, dropout) is None) == trains
    q = torch.empty(*shape, 8, dtype=dtype)
    with torch.no_grad():
        for mode in (INFERENCE, COMPILE):
            assert (fused.refusal(mode, q, q, q, dropout) is None) == infers
    q = torch.empty(*shape, 8, dtype=dtype, device='meta')
    assert fused.refusal(TRAINING, q, q, q, dropout) is None


@pytest.mark.parametrize('size', [(4, 8), (5, 8), (3, 1)])
def test_padding(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    needs_padding = size[0] % 4 != 0 or size[1] % 4 != 0
    assert (padding.pad_refusal(INFERENCE, x, 4) is not None) == needs_padding
    padded = pad_reference(x, 4, 7.0)
    assert padded.shape[2:] == tuple(-(-n // 4) * 4 for n in size)
    assert torch.equal(crop_reference(padded, size), x)
    assert bool((padded[:, :, size[0] :] == 7).all())
    if not needs_padding:
        assert torch.equal(padding.run_pad(INFERENCE, x, 4), padded)


@pytest.mark.parametrize('size', [(4, 8), (3, 8), (1, 1)])
def test_crop(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 4, 8)
    assert padding.crop_refusal(INFERENCE, x, size) is None
    cropped = padding.run_crop(INFERENCE, x, size)
    assert torch.equal(cropped, crop_reference(x, size))
    assert cropped.is_contiguous()
    assert (cropped.data_ptr() == x.data_ptr()) == (size == (4, 8))
