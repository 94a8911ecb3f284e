"""The public switch of the kernels, what it reports, and when a kernel steps aside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import vmap
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrizations import weight_norm

from mmvit_backbones import kernels
from mmvit_backbones.kernels.dispatch import Dispatcher
from mmvit_backbones.layers.seam import get_dispatcher, set_dispatcher
from tests.models import SMALL
from tests.utils import run_paths


@pytest.fixture(autouse=True)
def _auto() -> Iterator[None]:
    """Start each test in mode 'auto', whatever the environment says."""
    before = get_dispatcher()
    kernels.use('auto')
    yield
    set_dispatcher(before)


def disabled() -> frozenset[str] | None:
    """Return what is disabled; None in mode 'reference'."""
    dispatcher = get_dispatcher()
    return dispatcher.disabled if isinstance(dispatcher, Dispatcher) else None


def test_a_call_lasts_and_a_context_ends() -> None:
    kernels.use('reference')
    assert disabled() is None
    with kernels.use('auto', disable=('norm_mlp', 'windows')):
        assert disabled() == {'norm_mlp', 'windows'}
        with kernels.use('reference'):
            assert disabled() is None
        with kernels.use('auto', disable='norm_mlp'):
            assert disabled() == {'norm_mlp'}
        assert disabled() == {'norm_mlp', 'windows'}
    assert disabled() is None
    kernels.use('auto')
    assert disabled() == frozenset()


def test_a_context_ends_with_an_error() -> None:
    with pytest.raises(KeyError), kernels.use('reference'):
        raise KeyError
    assert disabled() == frozenset()


def test_bad_names() -> None:
    with pytest.raises(ValueError, match=r"setting must be .*, got 'off'"):
        kernels.use('off')
    with pytest.raises(ValueError, match=r"disable must hold names of \(.*\), got \['mlp'\]"):
        kernels.use('auto', disable=('mlp', 'windows'))
    assert disabled() == frozenset()


def test_environment_variable() -> None:
    code = """
import os
from mmvit_backbones.kernels.switch import use_environment
from mmvit_backbones.layers.seam import get_dispatcher
print(get_dispatcher())
os.environ['MMVIT_KERNELS'] = 'auto'
use_environment()
print(type(get_dispatcher()).__name__)
os.environ['MMVIT_KERNELS'] = 'fast'
use_environment()
"""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'MMVIT_KERNELS': 'reference'},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ['None', 'Dispatcher'], done.stderr
    assert "MMVIT_KERNELS must be one of ('auto', 'reference'), got 'fast'" in done.stderr


def test_explain_names_layers_paths_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    model = SMALL['twins']().eval()
    with torch.no_grad(), kernels.use('auto', disable='norm_mlp'):
        paths = kernels.explain(model, torch.randn(1, 3, 64, 96))
    by_layer = {path.layer: path for path in paths if path.function.startswith('TwinsSVTBlock')}
    assert by_layer['blocks.0.0.attn'].function == 'TwinsSVTBlock.attend'
    assert by_layer['blocks.0.0.attn'].path == 'windows'
    assert by_layer['blocks.0.0.attn'].reason == ''
    assert by_layer['blocks.0.0.mlp'].path == 'reference'
    assert by_layer['blocks.0.0.mlp'].reason == 'the kernel is disabled'
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        assert line.split()[:1] == [path.function]
        assert path.layer in line
        assert path.path in line
        assert line.endswith(path.reason)


def test_explain_without_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    with kernels.use('reference'):
        assert kernels.explain(SMALL['xcit'](), torch.randn(2, 3, 64, 96)) == []
    assert 'kernels are off' in capsys.readouterr().out


@pytest.mark.parametrize('kernel', ['gram_attention', 'norm_mlp', 'conv_stem'])
def test_a_disabled_kernel_does_not_run(kernel: str) -> None:
    model = SMALL['xcit']().eval()
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert kernel in run_paths(model, x)
        with kernels.use('auto', disable=(kernel,)):
            assert kernel not in run_paths(model, x)


def path_of(model: nn.Module, layer: str, x: Tensor) -> tuple[str, str]:
    """Return the path and the reason of a layer's branch."""
    with torch.no_grad():
        paths = kernels.explain(model, x)
    return next((path.path, path.reason) for path in paths if path.layer == layer)


class Linear(nn.Linear):
    """A linear layer of the user."""


class Tagged(nn.Parameter):
    """A parameter of the user."""


def add_forward_hook(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda *_: None)


def add_forward_pre_hook(linear: nn.Linear) -> None:
    linear.register_forward_pre_hook(lambda *_: None)


def add_backward_hook(linear: nn.Linear) -> None:
    linear.register_full_backward_hook(lambda *_: None)


def set_class(linear: nn.Linear) -> None:
    linear.__class__ = Linear


def set_forward(linear: nn.Linear) -> None:
    linear.forward = lambda x: nn.functional.linear(x, linear.weight, linear.bias)


def parametrize(linear: nn.Linear) -> None:
    weight_norm(linear)


def tag(linear: nn.Linear) -> None:
    linear.weight = Tagged(linear.weight.detach())


REASONS = {
    add_forward_hook: 'a Linear has a hook',
    add_forward_pre_hook: 'a Linear has a hook',
    add_backward_hook: 'a Linear has a hook',
    set_class: 'the class Linear is not of torch.nn.modules, mmcv or this package',
    set_forward: 'a Linear has a forward of its own',
    parametrize: 'the class ParametrizedLinear is not of torch.nn.modules, mmcv or this package',
    tag: 'a Linear holds a Tagged',
}
LAYERS = {'blocks.0.0.attn': 'qkv', 'blocks.0.0.mlp': 'fc1'}


@pytest.mark.parametrize('change', REASONS)
@pytest.mark.parametrize('layer', LAYERS)
def test_a_kernel_steps_aside_for_what_is_not_plain(
    layer: str, change: Callable[[nn.Linear], None]
) -> None:
    model = SMALL['twins']().eval()
    x = torch.randn(1, 3, 64, 96)
    assert path_of(model, layer, x)[0] != 'reference'
    change(getattr(model.get_submodule(layer), LAYERS[layer]))
    assert path_of(model, layer, x) == ('reference', REASONS[change])


def test_a_kernel_steps_aside_for_global_hooks() -> None:
    model = SMALL['twins']().eval()
    x = torch.randn(1, 3, 64, 96)
    called = []
    handle = torch_module.register_module_forward_hook(lambda *_: called.append(1))
    try:
        assert path_of(model, 'blocks.0.0.mlp', x)[0] == 'reference'
    finally:
        handle.remove()
    assert called
    assert path_of(model, 'blocks.0.0.mlp', x)[0] == 'norm_mlp'


def test_a_kernel_steps_aside_for_transforms() -> None:
    model = SMALL['twins']().eval()
    x = torch.randn(2, 3, 64, 96)
    with forward_ad.dual_level():
        assert 'torch.func transform' in path_of(model, 'blocks.0.0.mlp', x)[1]
    reasons = []

    def call(image: Tensor) -> Tensor:
        reasons.append(path_of(model, 'blocks.0.0.mlp', image[None]))
        return image

    vmap(call)(x)
    assert reasons[0][0] == 'reference'
    assert 'torch.func transform' in reasons[0][1]


@pytest.mark.parametrize('name', ['twins', 'xcit'])
def test_dropout_obeys_its_own_training_mode(name: str) -> None:
    # Monte Carlo dropout: a model in evaluation mode whose dropout alone is in training mode.
    x = torch.randn(2, 3, 128, 128)
    for rate in ('drop_rate', 'attn_drop_rate', 'drop_path_rate'):
        model = SMALL[name](**{rate: 0.5}).eval()
        with torch.no_grad():
            assert torch.equal(model(x)[-1], model(x)[-1])
            for module in model.modules():
                if type(module).__name__.startswith('Drop'):
                    module.train()
            assert not torch.equal(model(x)[-1], model(x)[-1]), rate


def test_a_function_without_a_kernel_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmvit_backbones.kernels.dispatch.FUNCTION_KERNELS', {})
    monkeypatch.setattr('mmvit_backbones.kernels.dispatch.BRANCH_KERNELS', {})
    assert run_paths(SMALL['xcit'](), torch.randn(2, 3, 64, 96)) == {'reference'}


@pytest.mark.parametrize('strict', [False, True])
def test_exported_graphs_hold_fused_attention(strict: bool) -> None:
    exported = torch.export.export(
        SMALL['twins']().eval(), (torch.randn(1, 3, 64, 64),), strict=strict
    )
    targets = [str(node.target) for node in exported.graph.nodes]
    assert sum('scaled_dot_product_attention' in target for target in targets) == 4
