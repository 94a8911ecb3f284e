"""What both networks, in both variants, promise as PyTorch models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from mmvit_backbones import kernels
from tests.models import BACKBONES, CLASSIFIERS, MODELS, SMALL, SMALL_CLASSIFIERS
from tests.utils import (
    as_maps,
    check_autocast,
    check_compiled,
    count_saved,
    loss_of,
    max_error,
    randomize,
)

EVERY_BACKBONE = pytest.mark.parametrize('name', BACKBONES)
EVERY_MODEL = pytest.mark.parametrize('name', MODELS)
EVERY_SMALL = pytest.mark.parametrize('name', SMALL)
BOTH_NETWORKS = pytest.mark.parametrize('name', ['twins', 'xcit'])
BOTH_MODES = pytest.mark.parametrize('mode', ['auto', 'reference'])
RATES = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(*size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=dtype)


def assert_close(ours: object, expected: object, tolerance: float = 1e-5) -> None:
    """Compare outputs; the tolerance is relative to the largest value."""
    for a, b in zip(as_maps(ours), as_maps(expected), strict=True):
        assert max_error(a, b) <= tolerance * max(1, float(b.detach().abs().max()))


# Sizes, gradients, copies.


@BOTH_MODES
@pytest.mark.parametrize('size', [(32, 32), (33, 32), (97, 131), (64, 250)])
@EVERY_BACKBONE
def test_map_sizes_are_rounded_up(name: str, size: tuple[int, int], mode: str) -> None:
    model = BACKBONES[name]()
    with kernels.use(mode):
        maps = model(images(*size))
    assert isinstance(maps, tuple)
    assert model.out_strides == (4, 8, 16, 32)
    for out, channels, stride in zip(maps, model.out_channels, model.out_strides, strict=True):
        assert out.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert out.isfinite().all()


@EVERY_BACKBONE
def test_last_pixels_are_not_cropped(name: str) -> None:
    x = images(97, 131).requires_grad_()
    loss_of(randomize(BACKBONES[name]()).eval()(x)).backward()
    assert x.grad is not None
    assert x.grad[..., -1, :].abs().sum() > 0
    assert x.grad[..., -1].abs().sum() > 0


@BOTH_MODES
@EVERY_MODEL
def test_every_parameter_gets_a_gradient(name: str, mode: str) -> None:
    model = randomize(MODELS[name]())
    with kernels.use(mode):
        sum(out.pow(3).sum() for out in as_maps(model(images(64, 97)))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@EVERY_MODEL
def test_kernels_change_no_output_and_no_gradient(name: str) -> None:
    model = randomize(MODELS[name]()).double()
    x = images(97, 125, dtype=torch.float64)
    results = []
    for mode in ('auto', 'reference'):
        with kernels.use(mode):
            outputs = as_maps(model(x))
            gradients = torch.autograd.grad(loss_of(outputs), list(model.parameters()))
            with torch.no_grad():
                inferred = as_maps(model(x))
        results.append([*outputs, *inferred, *gradients])
    assert_close(*results, 1e-9)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2])
@EVERY_BACKBONE
def test_frozen_stages(name: str, frozen_stages: int) -> None:
    model = randomize(BACKBONES[name](frozen_stages=frozen_stages)).train()
    frozen = list(model._frozen_modules())
    parameters = {p for module in frozen for p in module.parameters()}
    assert bool(frozen) == (frozen_stages >= 0)
    assert not any(m.training for module in frozen for m in module.modules())
    before = copy.deepcopy([module.state_dict() for module in frozen])
    loss_of(model(images(64, 64))).backward()
    for p in model.parameters():
        assert p.requires_grad == (p not in parameters)
        assert (p.grad is None) == (p in parameters)
    for module, state in zip(frozen, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@EVERY_MODEL
def test_state_dict_copy_and_pickle(name: str) -> None:
    model = randomize(MODELS[name]()).eval()
    fresh = MODELS[name]().eval()
    fresh.load_state_dict(model.state_dict(), strict=True)
    x = images(50, 70, batch=1)
    with torch.no_grad():
        expected = as_maps(model(x))
        for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(map(torch.equal, as_maps(other(x)), expected))


@BOTH_MODES
@EVERY_MODEL
def test_channels_last_input_gives_the_same(name: str, mode: str) -> None:
    model = randomize(MODELS[name]()).double().eval()
    x = images(64, 75, dtype=torch.float64)
    with torch.no_grad(), kernels.use(mode):
        assert_close(model(x.to(memory_format=torch.channels_last)), model(x), 1e-12)


@BOTH_MODES
@EVERY_MODEL
def test_outputs_are_contiguous(name: str, mode: str) -> None:
    """RoIAlign of mmcv reads others wrongly."""
    model = MODELS[name]().eval()
    for x in (images(64, 96), images(50, 70)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            with torch.no_grad(), kernels.use(mode):
                outputs = as_maps(model(x.contiguous(memory_format=memory_format)))
            assert all(output.is_contiguous() for output in outputs)


@BOTH_MODES
@EVERY_MODEL
def test_empty_batch(name: str, mode: str) -> None:
    model = MODELS[name]().eval()
    with kernels.use(mode):
        outputs = as_maps(model(images(64, 75, batch=0)))
        shapes = [out.shape[1:] for out in as_maps(model(images(64, 75, batch=1)))]
    assert [out.shape for out in outputs] == [(0, *shape) for shape in shapes]
    loss_of([out.sum() for out in outputs]).backward()


X = torch.zeros(1, 3, 64, 64)
BAD_INPUTS: dict[str, tuple[object, type[Exception], str]] = {
    'small': (X[..., :31, :], ValueError, 'at least 32 px high and wide, got 31 x 64'),
    'grey': (X[:, :1], ValueError, r'\(B, 3, H, W\), got \(1, 1, 64, 64\)'),
    'one image': (X[0], ValueError, r'\(B, 3, H, W\), got \(3, 64, 64\)'),
    'uint8': (X.byte(), ValueError, 'floating-point values, got torch.uint8'),
    'complex': (X.cfloat(), ValueError, 'floating-point values, got torch.complex64'),
    'float64': (
        X.double(),
        ValueError,
        r'dtype, torch\.float32, or autocast .* got torch\.float64',
    ),
    'bfloat16': (X.bfloat16(), ValueError, r'dtype, torch\.float32, .* got torch\.bfloat16'),
    'meta': (X.to('meta'), ValueError, 'it is on the device meta'),
    'sparse': (X.to_sparse(), ValueError, 'dense tensor, got torch.sparse_coo'),
    'mkldnn': (X.to_mkldnn(), ValueError, 'dense tensor, got torch._mkldnn'),
    'array': (X.numpy(), TypeError, 'must be a torch.Tensor, got numpy.ndarray'),
    'list': (X.tolist(), TypeError, 'must be a torch.Tensor, got builtins.list'),
    'nothing': (None, TypeError, 'must be a torch.Tensor, got builtins.NoneType'),
}


@EVERY_BACKBONE
def test_bad_input(name: str) -> None:
    model = BACKBONES[name]().eval()
    for mode in ('auto', 'reference'):
        for x, error, message in BAD_INPUTS.values():
            with kernels.use(mode), pytest.raises(error, match=message):
                model(x)


@BOTH_NETWORKS
def test_input_of_another_dtype_than_the_weights(name: str) -> None:
    """Where autocast is on, half of float32's precision is fine, and float64 is not."""
    model = SMALL[name]().eval()
    with torch.autocast('cpu', torch.bfloat16):
        assert len(model(X.bfloat16())) == len(model(X))
        with pytest.raises(ValueError, match=r'or autocast be on, got torch\.float64'):
            model(X.double())
    with pytest.raises(ValueError, match=r'dtype, torch\.bfloat16, .* got torch\.float32'):
        model.bfloat16()(X)


@BOTH_NETWORKS
def test_other_errors_of_the_stem_stay_as_they_are(name: str) -> None:
    model = SMALL[name]()

    def fail(*_: object) -> None:
        raise RuntimeError('of a hook')

    model.get_submodule(
        'patch_embeds.0' if name == 'twins' else 'patch_embed'
    ).proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='of a hook'):
        model(X)


@EVERY_BACKBONE
def test_rates_act_while_training_only(name: str) -> None:
    x = images(64, 64)
    for rate in RATES:
        model = randomize(BACKBONES[name](**{rate: 0.5}))
        assert not torch.equal(model(x)[-1], model(x)[-1]), rate
        model.eval()
        assert all(map(torch.equal, model(x), model(x))), rate


@pytest.mark.parametrize('in_channels', [1, 5])
@EVERY_SMALL
def test_in_channels(name: str, in_channels: int) -> None:
    assert SMALL[name](in_channels=in_channels)(torch.randn(2, in_channels, 40, 64))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@EVERY_BACKBONE
def test_autocast_costs_no_more_accuracy_than_the_reference(name: str, dtype: torch.dtype) -> None:
    with kernels.use('auto'):
        check_autocast(randomize(BACKBONES[name]()), dtype)


# Gradient checkpointing.


def train_step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return outputs, gradients and buffers after one step from a fixed seed."""
    torch.manual_seed(1)
    outputs = as_maps(model(x))
    loss_of(outputs).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [*outputs, *gradients, *(b.double() for b in model.buffers())]


@pytest.mark.parametrize('frozen_stages', [-1, 1])
@EVERY_BACKBONE
def test_gradient_checkpointing_changes_nothing(name: str, frozen_stages: int) -> None:
    rates = dict.fromkeys(RATES, 0.2)
    plain = randomize(BACKBONES[name](frozen_stages=frozen_stages, **rates))
    saving = BACKBONES[name](frozen_stages=frozen_stages, with_cp=True, **rates)
    saving.load_state_dict(plain.state_dict())
    x = images(64, 75)
    results = [train_step(model, x) for model in (saving, plain)]
    assert_close(*results, 1e-5)


@BOTH_MODES
@EVERY_BACKBONE
def test_gradient_checkpointing_saves_less_for_backward(name: str, mode: str) -> None:
    plain = BACKBONES[name]()
    saving = BACKBONES[name](with_cp=True)
    x = images(96, 128)
    with kernels.use(mode):
        without, saved = (count_saved(lambda model=model: model(x)) for model in (plain, saving))
    assert saved < 0.8 * without


@EVERY_SMALL
def test_recomputation_runs_the_path_of_the_forward_pass(name: str) -> None:
    """What decides is the switch at the time of the forward pass."""
    plain, saving = randomize(SMALL[name]()), randomize(SMALL[name](with_cp=True))
    x = images(64, 75)
    results = []
    for model in (saving, plain):
        torch.manual_seed(1)
        with kernels.use('reference'):
            outputs = model(x)
        with kernels.use('auto'):
            gradients = torch.autograd.grad(loss_of(outputs), list(model.parameters()))
        results.append([*outputs, *gradients])
    assert_close(*results, 1e-6)


# Hooks and adapters.

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


# Function transforms and derivatives.


@BOTH_MODES
@EVERY_SMALL
def test_functional_call_uses_the_given_parameters(name: str, mode: str) -> None:
    model, other = randomize(SMALL[name]()).eval(), randomize(SMALL[name](), seed=1).eval()
    x = images(64, 96)
    with kernels.use(mode):
        outputs = functional_call(model, {**other.state_dict()}, (x,))
        assert_close(outputs, other(x))
        assert max_error(outputs[-1], model(x)[-1]) > 1e-3


@BOTH_MODES
@EVERY_SMALL
def test_vmap_over_images(name: str, mode: str) -> None:
    model = randomize(SMALL[name]()).double().eval()
    x = images(48, 70, batch=3, dtype=torch.float64)
    with torch.no_grad(), kernels.use(mode):
        mapped = vmap(lambda image: model(image[None])[-1][0])(x)
        assert_close(mapped, model(x)[-1], 1e-10)


@BOTH_MODES
@EVERY_SMALL
def test_forward_mode_derivatives_equal_finite_differences(name: str, mode: str) -> None:
    model = randomize(SMALL[name]()).double().eval()
    x, v = (images(64, 75, batch=1, dtype=torch.float64) for _ in range(2))
    step = 1e-5
    with kernels.use(mode):
        _, tangent = jvp(lambda x: model(x)[-1], (x,), (v,))
        with forward_ad.dual_level():
            dual = model(forward_ad.make_dual(x, v))[-1]
            also = forward_ad.unpack_dual(dual).tangent.clone()
        with torch.no_grad():
            expected = (model(x + step * v)[-1] - model(x - step * v)[-1]) / (2 * step)
    assert float(expected.norm()) > 0.1
    assert_close(tangent, expected, 1e-5)
    assert_close(also, expected, 1e-5)


@BOTH_MODES
@EVERY_SMALL
def test_second_derivatives_are_right_or_refused(name: str, mode: str) -> None:
    """Right in mode 'reference'; kernels may refuse, with a word on the switch."""
    model = randomize(SMALL[name]()).double().eval()
    x, v = (images(64, 75, batch=1, dtype=torch.float64) for _ in range(2))
    step = 1e-5

    def gradient(x: Tensor, create_graph: bool = False) -> Tensor:
        x = x.detach().requires_grad_()
        loss = model(x)[-1].pow(3).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=create_graph)
        return grad if not create_graph else torch.autograd.grad((grad * v).sum(), x)[0]

    with kernels.use(mode):
        expected = (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)
        try:
            product = gradient(x, create_graph=True)
        except RuntimeError as error:
            assert mode == 'auto'
            assert "mmvit_backbones.kernels.use('reference')" in str(error)  # noqa: PT017
            return
    assert float(expected.norm()) > 0.1
    assert_close(product, expected, 1e-4)


# Compilation, export, tracing.


@pytest.mark.parametrize('name', ['twins', 'twins-zero', 'twins-vit-pytorch', 'xcit'])
def test_compiles_for_all_sizes(name: str) -> None:
    torch._dynamo.reset()
    with kernels.use('auto'):
        model = randomize(SMALL[name]()).double()
        check_compiled(model, [(64, 96), (97, 75), (120, 200), (224, 112)])


@pytest.mark.parametrize('size', [(64, 64), (97, 75)])
def test_vit_pytorch_xcit_compiles_for_one_size(size: tuple[int, int]) -> None:
    torch._dynamo.reset()
    with kernels.use('auto'):
        check_compiled(randomize(SMALL['xcit-vit-pytorch']()).double(), [size])


@BOTH_NETWORKS
def test_inductor_computes_the_same(name: str) -> None:
    torch._dynamo.reset()
    model = randomize(SMALL[name]())
    x = images(64, 75)
    results = []
    with kernels.use('auto'):
        for function in (torch.compile(model, fullgraph=True), model):
            outputs = function(x)
            gradients = torch.autograd.grad(loss_of(outputs), list(model.parameters()))
            results.append([*outputs, *gradients])
    assert_close(*results, 1e-4)


EXPORTED = {**{name: SMALL[name] for name in ('twins', 'xcit')}, **SMALL_CLASSIFIERS}
EXPORTED['xcit-pyramid'] = lambda: BACKBONES['xcit-16'](out_indices=(0, 1, 2, 3))


@pytest.mark.parametrize('strict', [False, True], ids=['non-strict', 'strict'])
@pytest.mark.parametrize('name', EXPORTED)
def test_exports_for_all_sizes(name: str, strict: bool) -> None:
    """One row of tokens is a case of its own for PyTorch's export, so heights start at two."""
    if strict and name == 'xcit-pyramid':
        pytest.skip('slow, and the same graph as without strict')
    model = randomize(EXPORTED[name]()).eval()
    batch, height, width = (
        torch.export.Dim(name, min=low) for name, low in (('B', 1), ('H', 33), ('W', 33))
    )
    program = torch.export.export(
        model,
        (images(64, 96),),
        dynamic_shapes=({0: batch, 2: height, 3: width},),
        strict=strict,
    )
    assert not any('mmvit' in str(node.target) for node in program.graph.nodes)
    exported = program.module()
    for batch_size, *size in [(2, 64, 96), (1, 96, 64), (3, 97, 75), (1, 33, 131), (3, 128, 128)]:
        x = images(*size, batch=batch_size)
        with torch.no_grad():
            assert_close(exported(x), model(x), 1e-5)


@EVERY_MODEL
def test_fake_and_meta_tensors_give_the_shapes(name: str) -> None:
    model = MODELS[name]().eval()
    shapes = [out.shape for out in as_maps(model(images(64, 75)))]
    with torch.device('meta'):
        on_meta = MODELS[name]().eval()
        assert [out.shape for out in as_maps(on_meta(images(64, 75)))] == shapes
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert [out.shape for out in as_maps(model(images(64, 75)))] == shapes


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore:.*torch.jit.trace.*:DeprecationWarning')
@pytest.mark.parametrize('name', [*SMALL, *SMALL_CLASSIFIERS])
def test_traced_model_computes_the_same(name: str) -> None:
    model = randomize({**SMALL, **SMALL_CLASSIFIERS}[name]()).eval()
    x = images(64, 75)
    with torch.no_grad(), kernels.use('auto'):
        traced = torch.jit.trace(model, x, check_trace=False)
        assert 'mmvit' not in str(traced.inlined_graph.findAllNodes('mmvit_backbones::norm_mlp'))
        assert_close(traced(x), model(x), 1e-5)


def test_classifiers_return_logits() -> None:
    for make in CLASSIFIERS.values():
        assert make()(images(64, 64)).shape == (2, 7)
