"""What both networks, in both variants, promise as PyTorch models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap

from mmvit_backbones import kernels
from tests.models import (
    BACKBONES,
    BOTH_MODES,
    BOTH_NETWORKS,
    CLASSIFIERS,
    EVERY_BACKBONE,
    EVERY_MODEL,
    EVERY_SMALL,
    MODELS,
    SMALL,
    images,
)
from tests.utils import (
    as_maps,
    assert_close,
    check_autocast,
    count_saved,
    loss_of,
    max_error,
    randomize,
)

pytestmark = pytest.mark.usefixtures('seed')


RATES = ('drop_rate', 'attn_drop_rate', 'drop_path_rate')

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


def test_classifiers_return_logits() -> None:
    for make in CLASSIFIERS.values():
        assert make()(images(64, 64)).shape == (2, 7)
