"""Hooks, adapters, other weights and other layers act on both networks as on any PyTorch model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from mmvit_backbones import kernels
from tests.models import (
    EVERY_MODEL,
    EVERY_SMALL,
    MODELS,
    SMALL,
    images,
)
from tests.utils import (
    assert_close,
    loss_of,
    max_error,
    randomize,
)

pytestmark = pytest.mark.usefixtures('seed')


HOOKED = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.Dropout)


def inner_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that users listen to, and the stochastic depth of the blocks."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, HOOKED) or type(module).__name__ == 'DropPath'
    }


def add_hooks(name: str, module: nn.Module, fired: dict[str, set[str]]) -> Iterator[object]:
    """Register one hook of each kind that notes that it was called."""
    calls = fired.setdefault(name, set())
    yield module.register_forward_pre_hook(lambda *_: calls.add('pre'))
    yield module.register_forward_hook(lambda *_: calls.add('forward'))
    yield module.register_full_backward_hook(lambda *_: calls.add('backward'))


@pytest.mark.filterwarnings('ignore:Full backward hook is firing:UserWarning')
@pytest.mark.parametrize('training', [True, False])
@EVERY_MODEL
def test_hooks_of_all_inner_modules_fire(name: str, training: bool) -> None:
    model = randomize(MODELS[name]()).double().train(training)
    x = images(64, 75, dtype=torch.float64).requires_grad_()
    with kernels.use('auto'):
        expected = model(x)  # the hooks come after a first call
        fired: dict[str, set[str]] = {}
        handles = [
            handle
            for name, module in inner_modules(model).items()
            for handle in add_hooks(name, module, fired)
        ]
        outputs = model(x)
        loss_of(outputs).backward()
        assert_close(outputs, expected, 1e-9)
        assert {name for name, calls in fired.items() if len(calls) < 3} == set()
        for handle in handles:
            handle.remove()
        assert_close(model(x), expected, 1e-9)


@pytest.mark.filterwarnings('ignore:Full backward hook is firing:UserWarning')
@pytest.mark.parametrize('training', [True, False])
@EVERY_SMALL
def test_a_hook_of_one_inner_module_fires(name: str, training: bool) -> None:
    model = randomize(SMALL[name]()).train(training)
    x = images(48, 64).requires_grad_()
    with kernels.use('auto'):
        expected = model(x)
        for module_name, module in inner_modules(model).items():
            fired: dict[str, set[str]] = {}
            handles = list(add_hooks(module_name, module, fired))
            outputs = model(x)
            loss_of(outputs).backward()
            assert fired == {module_name: {'pre', 'forward', 'backward'}}
            assert_close(outputs, expected, 1e-5)
            for handle in handles:
                handle.remove()


@EVERY_MODEL
def test_attention_maps_are_read_by_hooks(name: str) -> None:
    model = randomize(MODELS[name]()).eval()
    read = []
    for module_name, module in model.named_modules():
        if module_name.endswith('attn_drop'):
            module.register_forward_hook(lambda module, inputs, out: read.append(out))
    with torch.no_grad(), kernels.use('auto'):
        model(images(97, 75))
    assert len(read) == sum(name.endswith('attn_drop') for name, _ in model.named_modules()) > 0
    for weights in read:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


class Adapter(nn.Module):
    """Wraps a linear layer; has no `weight` of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)

    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same."""
        linear = copy.deepcopy(self.base)
        zeros = torch.zeros(1, self.base.in_features, dtype=self.base.weight.dtype)
        identity = torch.eye(self.base.in_features, dtype=self.base.weight.dtype)
        with torch.no_grad():
            bias = self(zeros)
            linear.weight.copy_((self(identity) - bias).t())
            if linear.bias is not None:
                linear.bias.copy_(bias[0])
        return linear


class LoRA(Adapter):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 0.2)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


class DoRA(LoRA):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.magnitude = nn.Parameter(base.weight.detach().norm(dim=1) * 1.1)

    def forward(self, x: Tensor) -> Tensor:
        direction = self.base.weight + self.up @ self.down
        weight = self.magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
        return nn.functional.linear(x, weight, self.base.bias)


class IA3(Adapter):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.factors = nn.Parameter(1 + 0.3 * torch.rand(base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.factors


def replace_linears(
    model: nn.Module, make: Callable[[nn.Module], nn.Module], kind: type[nn.Module] = nn.Linear
) -> nn.Module:
    """Replace every layer of a kind inside blocks."""
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition('.')
        if type(module) is kind or (kind is Adapter and isinstance(module, Adapter)):
            setattr(model.get_submodule(parent), child, make(module))
    return model


@pytest.mark.parametrize('size', [(96, 128), (384, 384)])
@pytest.mark.parametrize('adapter', [LoRA, DoRA, IA3])
@EVERY_SMALL
def test_adapters_act_learn_and_merge(
    name: str, adapter: type[Adapter], size: tuple[int, int]
) -> None:
    model = randomize(SMALL[name]()).eval()
    x = images(*size, batch=1)
    with kernels.use('auto'):
        with torch.no_grad():
            before = model(x)
        adapted = replace_linears(model.requires_grad_(False), adapter)
        outputs = adapted(x)
        assert max_error(outputs[-1], before[-1]) > 1e-3
        loss_of(outputs).backward()
        trained = [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]
        assert len(trained) >= 4
        assert [name for name, p in trained if p.grad is None or not p.grad.any()] == []
        merged = replace_linears(copy.deepcopy(adapted), lambda layer: layer.merged(), kind=Adapter)
        with torch.no_grad():
            assert_close(merged(x), outputs, 1e-5)


@pytest.mark.parametrize('kind', ['lora', 'dora', 'ia3'])
@EVERY_SMALL
def test_peft_acts_learns_and_merges(name: str, kind: str) -> None:
    peft = pytest.importorskip('peft')
    model = randomize(SMALL[name]()).eval()
    linears = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    if kind == 'ia3':
        config = peft.IA3Config(
            target_modules=linears, feedforward_modules=[], init_ia3_weights=False
        )
    else:
        config = peft.LoraConfig(
            r=2, target_modules=linears, use_dora=kind == 'dora', init_lora_weights=False
        )
    for size in [(96, 128), (384, 384)]:
        x = images(*size, batch=1)
        with kernels.use('auto'):
            with torch.no_grad():
                before = model(x)[-1]
            adapted = peft.get_peft_model(copy.deepcopy(model), config)
            outputs = adapted(x)
            assert max_error(outputs[-1], before) > 1e-3
            loss_of(outputs).backward()
            trained = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad]
            assert trained
            assert [n for n, p in trained if p.grad is None or not p.grad.any()] == []
            with torch.no_grad():
                assert_close(adapted.merge_and_unload()(x), outputs, 1e-5)


class DoublingLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@EVERY_SMALL
def test_a_subclass_of_linear_is_called(name: str) -> None:
    model = randomize(SMALL[name]()).double().eval()
    x = images(96, 128, dtype=torch.float64)

    def make(linear: nn.Module) -> nn.Module:
        linear.__class__ = DoublingLinear
        return linear

    def double(linear: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in linear.parameters():
                p.mul_(2)
        return linear

    doubled = replace_linears(copy.deepcopy(model), double)
    with torch.no_grad(), kernels.use('auto'):
        assert_close(replace_linears(model, make)(x), doubled(x), 1e-9)


def parametrize_old(linear: nn.Module) -> nn.Module:
    return torch.nn.utils.weight_norm(linear)


def prune_half(linear: nn.Module) -> nn.Module:
    prune.l1_unstructured(linear, 'weight', 0.5)
    return linear


@pytest.mark.filterwarnings('ignore:.*torch.nn.utils.weight_norm.*:FutureWarning')
@pytest.mark.parametrize('change', [parametrize_old, weight_norm, prune_half])
@EVERY_SMALL
def test_reparametrized_weights_train(name: str, change: Callable[..., nn.Module]) -> None:
    """The weight is computed anew from its parameters in every step."""
    x = images(64, 96, dtype=torch.float64)
    results = []
    for mode in ('auto', 'reference'):
        model = replace_linears(randomize(SMALL[name]()).double().eval(), change)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outputs = []
        with kernels.use(mode):
            for _ in range(3):
                outputs.append(model(x)[-1])
                optimizer.zero_grad()
                loss_of(outputs[-1:]).backward()
                optimizer.step()
        assert not torch.allclose(outputs[0], outputs[1])
        assert not torch.allclose(outputs[1], outputs[2])
        results.append(outputs)
    assert_close(*results, 1e-9)
    with torch.no_grad(), kernels.use('auto'):
        plain = randomize(SMALL[name]()).double().eval()(x)[-1]
    assert torch.allclose(plain, results[0][0]) == (change is not prune_half)


@pytest.mark.filterwarnings('ignore:.*torch.ao.quantization.*:DeprecationWarning')
@pytest.mark.filterwarnings('ignore:.*quantized tensor creation functions:UserWarning')
@EVERY_SMALL
def test_dynamic_quantization_stays_close(name: str) -> None:
    model = randomize(SMALL[name]()).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = images(96, 128)
    with torch.no_grad(), kernels.use('auto'):
        for ours, expected in zip(quantized(x), model(x), strict=True):
            assert 0 < float((ours - expected).norm() / expected.norm()) < 0.1


@EVERY_SMALL
def test_torchao_int8_weights_stay_close(name: str) -> None:
    torchao = pytest.importorskip('torchao.quantization')
    model = randomize(SMALL[name]()).eval()
    quantized = copy.deepcopy(model)
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig())
    x = images(96, 128)
    with torch.no_grad(), kernels.use('auto'):
        for ours, expected in zip(quantized(x), model(x), strict=True):
            assert 0 < float((ours - expected).norm() / expected.norm()) < 0.1
