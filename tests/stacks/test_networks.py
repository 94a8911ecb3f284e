"""The networks compute the same under every supported torch.

The numbers beside this file were computed with torch 2.13. They are written anew, after a change
that means to change them, by `python -m tests.stacks.test_networks`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmvit_backbones import kernels, load_checkpoint
from tests.models import MODELS
from tests.utils import as_maps, loss_of, randomize

REFERENCE = Path(__file__).with_name('reference.safetensors')
SAMPLES = 32  # numbers kept of each tensor
IMAGES = torch.randn(2, 3, 45, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(name: str) -> torch.nn.Module:
    return randomize(MODELS[name]()).double()


def sample(tensor: Tensor) -> Tensor:
    """Keep some numbers of a tensor, evenly spaced, and its norm."""
    flat = tensor.detach().flatten()
    chosen = flat[torch.linspace(0, len(flat) - 1, SAMPLES).long()]
    return torch.cat([chosen, flat.norm()[None]])


def measure(name: str) -> dict[str, Tensor]:
    """Compute weights, outputs and gradients of a model, in training and in inference."""
    model = build(name)
    parameters = dict(model.named_parameters())
    weights = torch.stack([parameter.detach().norm() for parameter in parameters.values()])
    images = IMAGES.clone().requires_grad_()
    torch.manual_seed(0)
    outputs = model.train()(images)
    gradients = torch.autograd.grad(loss_of(outputs), [images, *parameters.values()])
    with torch.no_grad():
        inferred = model.eval()(IMAGES)
    return {
        f'{name}.weights': weights,
        f'{name}.gradient of images': sample(gradients[0]),
        f'{name}.gradients': torch.stack([gradient.norm() for gradient in gradients[1:]]),
        **{f'{name}.output {i}': sample(x) for i, x in enumerate(as_maps(outputs))},
        **{f'{name}.inferred {i}': sample(x) for i, x in enumerate(as_maps(inferred))},
    }


@pytest.mark.parametrize('mode', ['reference', 'auto'])
@pytest.mark.parametrize('name', MODELS)
def test_numbers_are_those_of_the_default_stack(name: str, mode: str) -> None:
    with kernels.use(mode):
        measured = measure(name)
    expected = {key: x for key, x in load_file(REFERENCE).items() if key.startswith(f'{name}.')}
    assert measured.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(measured[key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize('name', MODELS)
def test_trains_in_single_precision_and_under_autocast(name: str) -> None:
    model = randomize(MODELS[name]()).train()
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = loss_of([x.float() for x in as_maps(model(IMAGES.float()))])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.filterwarnings('ignore')  # the tracer's
@pytest.mark.parametrize('name', ['twins', 'xcit-8'])
def test_trace(name: str, tmp_path: Path) -> None:
    """The one export that every supported torch has."""
    model = build(name).eval()
    torch.jit.trace(model, IMAGES, check_trace=False).save(str(tmp_path / 'model.pt'))
    with torch.no_grad():
        traced = torch.jit.load(str(tmp_path / 'model.pt'))(IMAGES)
        for ours, expected in zip(traced, model(IMAGES), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_checkpoint_goes_round(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'model.{suffix}'
    source, target = build('twins'), MODELS['twins']().double()
    if suffix == 'pth':
        torch.save({'state_dict': source.state_dict(), 'meta': {'epoch': 1}}, path)
    else:
        save_file(source.state_dict(), path)
    load_checkpoint(target, path)
    for ours, expected in zip(target.parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, expected)


if __name__ == '__main__':
    with kernels.use('reference'):
        save_file({k: x for name in MODELS for k, x in measure(name).items()}, REFERENCE)
    print(f'wrote {REFERENCE}')
