"""Each form changes what it says, and nothing is left to the next one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import forms
from mmvit_backbones import kernels
from mmvit_backbones.kernels.dispatch import Dispatcher
from mmvit_backbones.layers.seam import get_dispatcher

NETWORK = 'xcit_nano_12_p16'
IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def run(form: str, subject: str = 'ours', run: str = 'forward') -> list[torch.Tensor]:
    """Make a pass; return the outputs of the convolutions, in their order."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            seen.append(output)

    make_pass = forms.build_pass(NETWORK, subject, form, run, IMAGES)
    handle = torch.nn.modules.module.register_module_forward_hook(keep)
    try:
        make_pass()
    finally:
        handle.remove()
    return seen


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match=r'a form is made of eager, .*; got quick'):
        forms.parse_form('compiled+quick')


def test_what_serves_whom() -> None:
    assert forms.serves('fused+bf16', 'ours', 'forward')
    assert not forms.serves('fused+bf16', 'timm', 'forward')
    assert not forms.serves('fused', 'ours', 'train')
    assert not forms.serves('frozen', 'timm', 'train')
    assert forms.serves('checkpointed', 'ours', 'train')


@pytest.mark.parametrize(
    ('form', 'dtype', 'precision'),
    [
        ('eager', torch.float32, 'fp32'),
        ('eager+bf16', torch.bfloat16, 'half'),
        ('pure-bf16', torch.bfloat16, 'half'),
    ],
)
@pytest.mark.parametrize('subject', ['ours', 'timm'])
def test_precision(form: str, dtype: torch.dtype, precision: str, subject: str) -> None:
    assert run(form, subject)[0].dtype == dtype
    assert forms.precision(form) == precision


def test_memory_format() -> None:
    channels_last = dict(memory_format=torch.channels_last)
    assert not run('eager', 'timm')[0].is_contiguous(**channels_last)
    assert run('channels_last', 'timm')[0].is_contiguous(**channels_last)


def test_only_training_makes_gradients() -> None:
    assert all(x.requires_grad for x in run('eager', run='train'))
    assert not any(x.requires_grad for x in run('eager'))


def test_kernels() -> None:
    others = set(kernels.KERNEL_NAMES) - {'norm_mlp'}
    for form, disabled in (
        ('eager', set()),
        ('compiled+without-norm_mlp', {'norm_mlp'}),
        ('only-norm_mlp', others),
    ):
        forms.use_kernels(form)
        dispatcher = get_dispatcher()
        assert isinstance(dispatcher, Dispatcher)
        assert dispatcher.disabled == disabled
    forms.use_kernels('compiled+reference')
    assert get_dispatcher() is None


def test_serving_kernels() -> None:
    serving = forms.serving_kernels(NETWORK, 'eager', 'forward', IMAGES)
    assert serving == {'norm_mlp', 'conv_stem', 'direct_attention'}
    assert not forms.serving_kernels(NETWORK, 'reference', 'forward', IMAGES)


def test_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forms.environment('compiled') == {}
    assert set(forms.environment('eager+malloc')) == set(forms.MALLOC)
    monkeypatch.setattr(forms, 'find_library', lambda name: f'lib{name}.so.4')
    assert forms.environment('tcmalloc')['LD_PRELOAD'] == 'libtcmalloc_minimal.so.4'
    monkeypatch.setattr(forms, 'find_library', lambda name: None)
    with pytest.raises(FileNotFoundError, match='jemalloc is not installed'):
        forms.environment('jemalloc')
