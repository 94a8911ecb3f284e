"""Both networks compile, export, trace and give shapes without values."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmvit_backbones import kernels
from tests.models import (
    BACKBONES,
    BOTH_NETWORKS,
    EVERY_MODEL,
    MODELS,
    SMALL,
    SMALL_CLASSIFIERS,
    images,
)
from tests.utils import (
    as_maps,
    assert_close,
    check_compiled,
    loss_of,
    randomize,
)

pytestmark = pytest.mark.usefixtures('seed')


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
            with torch.no_grad():
                inferred = function(x)
            outputs = function(x)
            gradients = torch.autograd.grad(loss_of(outputs), list(model.parameters()))
            results.append([*inferred, *outputs, *gradients])
    assert_close(*results, 1e-4)


@pytest.mark.parametrize('grad', [False, True], ids=['inference', 'training'])
@BOTH_NETWORKS
def test_compiles_whole_under_autocast(name: str, grad: bool) -> None:
    """No check of a kernel breaks the graph, whatever the precision."""
    torch._dynamo.reset()
    model, x = randomize(SMALL[name]()), images(64, 75)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    with (
        kernels.use('auto'),
        torch.set_grad_enabled(grad),
        torch.autocast('cpu', torch.bfloat16),
    ):
        assert_close(compiled(x), model(x), 0.1)


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
