"""Each kernel against its reference, through the blocks that it serves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import peak_allocated
from mmvit_backbones import kernels
from mmvit_backbones.backbones.twins_svt import TwinsSVTBlock
from mmvit_backbones.backbones.xcit import XCiTArch, XCiTBlock
from mmvit_backbones.kernels import gram_attention, norm_mlp, operators
from mmvit_backbones.kernels.dispatch import Choice, Dispatcher
from mmvit_backbones.kernels.modes import COMPILE
from mmvit_backbones.layers.conv_stem import ConvStem
from mmvit_backbones.layers.seam import use_dispatcher
from mmvit_backbones.layers.subsampled_attention import SubsampledAttention
from mmvit_backbones.layers.window_attention import WindowAttention
from tests.utils import count_saved, max_error, randomize

Function = Callable[[Tensor], Tensor]
HAS_BF16 = operators.runs_on_onednn(torch.device('cpu'), torch.bfloat16)


def twins_block(dims: int = 12, window_size: int = 3, mlp_ratio: int = 2) -> TwinsSVTBlock:
    attn = WindowAttention(dims, 2, 4, window_size)
    return TwinsSVTBlock(dims, attn, mlp_ratio, 1e-6, 0.0, 0.0)


def subsampled_block(ratio: int = 2, dims: int = 12, **kwargs: Any) -> TwinsSVTBlock:
    attn = SubsampledAttention(dims, 2, 4, ratio, **kwargs)
    return TwinsSVTBlock(dims, attn, 2, 1e-6, 0.0, 0.0)


def xcit_block(dims: int = 24, variant: str = 'paper', norm: str = 'BN', **rates: Any) -> XCiTBlock:
    grid_size = None if variant == 'paper' else (4, 4)
    arch = XCiTArch(dims, 1, 3, variant=variant, grid_size=grid_size)
    norm_cfg = dict(type=norm, num_groups=3) if norm == 'GN' else dict(type=norm)
    settings = dict(drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0, **rates)
    return XCiTBlock(arch, 1.0, norm_cfg, **settings)


class Branch(nn.Module):
    """One branch of a block, as a module of its own."""

    def __init__(self, block: nn.Module, name: str, *args: Any) -> None:
        super().__init__()
        self.block = block
        self.name = name
        self.args = args

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.block, self.name)(x, *self.args)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of the branch."""
        layers = {
            'interact': ('norm3', 'local_mp', 'gamma3'),
            'attend': ('norm1', 'attn', 'gamma1'),
            'feed_forward': ('norm2', 'mlp', 'gamma2'),
        }[self.name]
        names = [n for n, _ in self.block.named_parameters() if n.split('.')[0] in layers]
        found = [self.block.get_parameter(name) for name in names]
        return [parameter for parameter in found if parameter.requires_grad]


def kernels_of(function: Callable[[], object]) -> set[str]:
    """Return the kernels that run while a function runs, in mode 'auto'."""
    record: list[Choice] = []
    with use_dispatcher(Dispatcher(record=record)):
        function()
    return {choice.kernel.name for choice in record if choice.kernel is not None}


def run(branch: Branch, x: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the output, with and without autograd, and the gradients of a branch."""
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        out = branch(x)
        with torch.no_grad():
            inferred = branch(x)
    factors = torch.randn(
        out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    gradients = torch.autograd.grad((out.double() * factors).sum(), [x, *branch.trained()])
    return [out.detach(), inferred, *gradients]


def check(
    branch: Branch,
    x: Tensor,
    kernel: str,
    dtype: torch.dtype | None = None,
    trains: bool = True,
) -> None:
    """Compare a kernel with the reference in the precision of `x`, or under autocast."""
    assert (kernel in kernels_of(lambda: branch(x))) == trains
    with kernels.use('auto'):
        ours = run(branch, x, dtype)
    with kernels.use('reference'):
        expected = run(branch, x, dtype)
    assert [t.dtype for t in ours] == [t.dtype for t in expected]
    if dtype is None:
        for a, b in zip(ours, expected, strict=True):
            scale = float(b.abs().max()) if b.numel() else 0.0
            tolerance = 1e-9 if x.dtype == torch.float64 else 2e-4
            assert max_error(a, b) <= tolerance * max(1, scale)
        return
    with kernels.use('reference'):
        exact = run(copy.deepcopy(branch).double(), x.double(), None)

    def errors(results: list[Tensor]) -> float:
        return sum(
            float((a.double() - b).norm() / b.norm()) for a, b in zip(results, exact, strict=True)
        )

    assert errors(ours) <= 2 * errors(expected)  # roundings fall differently in so few values


PRECISIONS = pytest.mark.parametrize(
    ('dtype', 'autocast'),
    [(torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16)],
    ids=['float64', 'float32', 'autocast'],
)


@PRECISIONS
@pytest.mark.parametrize('size', [(6, 9), (7, 9), (6, 11), (8, 10), (2, 2), (1, 7)])
def test_windows(size: tuple[int, int], dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    branch = randomize(Branch(twins_block(), 'attend', size)).to(dtype)
    check(branch, torch.randn(2, size[0] * size[1], 12, dtype=dtype), 'windows', autocast)


@PRECISIONS
@pytest.mark.parametrize('size', [(6, 4), (5, 9), (1, 3)])
@pytest.mark.parametrize(
    ('ratio', 'fused_reduction'), [(1, False), (2, False), (2, True)], ids=['1', '2', 'fused']
)
def test_subsampled(
    ratio: int,
    fused_reduction: bool,
    size: tuple[int, int],
    dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> None:
    branch = Branch(subsampled_block(ratio, fused_reduction=fused_reduction), 'attend', size)
    x = torch.randn(2, size[0] * size[1], 12, dtype=dtype)
    check(randomize(branch).to(dtype), x, 'subsampled', autocast)


@pytest.mark.parametrize('trains', [True, False])
def test_subsampled_in_half_precision(trains: bool) -> None:
    """It saves memory for backward; without gradients the reference is as fast."""
    branch, x = Branch(subsampled_block(), 'attend', (6, 4)), torch.randn(2, 24, 12)
    with torch.set_grad_enabled(trains), torch.autocast('cpu', torch.bfloat16):
        assert ('subsampled' in kernels_of(lambda: branch(x))) == trains


def test_subsampled_refuses_other_padding() -> None:
    block = subsampled_block()
    block.attn.sr = nn.Conv2d(12, 12, 3, 2, 1, padding_mode='reflect')
    x = torch.randn(1, 24, 12)
    assert 'subsampled' not in kernels_of(lambda: block.attend(x, (6, 4)))


@PRECISIONS
@pytest.mark.parametrize('num_tokens', [1, 30])
@pytest.mark.parametrize('make', [twins_block, xcit_block])
def test_norm_mlp(
    make: Callable[[], nn.Module], num_tokens: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    branch = randomize(Branch(make(), 'feed_forward')).to(dtype)
    dims = branch.block.norm2.normalized_shape[0]
    check(branch, torch.randn(2, num_tokens, dims, dtype=dtype), 'norm_mlp', autocast)


@PRECISIONS
@pytest.mark.parametrize(('dims', 'ratio', 'num_tokens'), [(12, 170, 4500), (260, 8, 4100)])
def test_norm_mlp_over_several_chunks(
    dims: int, ratio: int, num_tokens: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    """The wider layer saves the hidden activation for backward."""
    x = torch.randn(1, num_tokens, dims, dtype=dtype)
    assert len(norm_mlp.chunk_sizes(x[0], dims * ratio, autocast or dtype)) > 1
    branch = randomize(Branch(twins_block(dims, mlp_ratio=ratio), 'feed_forward')).to(dtype)
    check(branch, x, 'norm_mlp', autocast)


@pytest.mark.parametrize(
    ('num_tokens', 'dtype', 'trains', 'serves'),
    [
        (87_500, torch.bfloat16, False, True),
        (87_000, torch.bfloat16, False, False),
        (87_000, torch.bfloat16, True, True),
        (87_000, torch.float32, False, True),
    ],
)
def test_norm_mlp_in_graphs(
    num_tokens: int, dtype: torch.dtype, trains: bool, serves: bool
) -> None:
    """Without gradients in half precision, from 16 MiB of the hidden activation (D = 96) on."""
    block = xcit_block()
    x = torch.empty(1, num_tokens, 24, dtype=dtype)
    with torch.set_grad_enabled(trains):
        reason = norm_mlp.refusal(COMPILE, x, block.norm2, block.mlp)
    assert (reason is None) == serves


@PRECISIONS
@pytest.mark.parametrize('variant', ['paper', 'vit-pytorch'])
@pytest.mark.parametrize('num_tokens', [90, 1240])
def test_gram_attention(
    num_tokens: int, variant: str, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    branch = randomize(Branch(xcit_block(variant=variant), 'attend')).to(dtype)
    check(branch, torch.randn(2, num_tokens, 24, dtype=dtype), 'gram_attention', autocast)


@PRECISIONS
@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('num_tokens', [1, 30])
def test_direct_attention(
    num_tokens: int, qkv_bias: bool, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    block = xcit_block()
    if not qkv_bias:
        block.attn.qkv.register_parameter('bias', None)
    branch = randomize(Branch(block, 'attend')).to(dtype)
    check(branch, torch.randn(3, num_tokens, 24, dtype=dtype), 'direct_attention', autocast)


@pytest.mark.parametrize(
    ('dtype', 'trains', 'serves'),
    [
        (torch.bfloat16, False, HAS_BF16),
        (torch.bfloat16, True, False),  # the reference is faster
        (torch.float16, False, False),  # sums would exceed its range
    ],
)
def test_direct_attention_in_half_precision(dtype: torch.dtype, trains: bool, serves: bool) -> None:
    branch, x = Branch(xcit_block(), 'attend'), torch.randn(2, 5, 24)
    with torch.set_grad_enabled(trains), torch.autocast('cpu', dtype):
        assert kernels_of(lambda: branch(x)) == ({'direct_attention'} if serves else set())


@pytest.mark.parametrize('trains', [True, False])
def test_many_tokens_in_bf16(trains: bool) -> None:
    """Without gradients the direct form is as fast as the Gram form, and takes less memory."""
    branch, x = Branch(xcit_block(), 'attend'), torch.randn(1, 500, 24)
    with torch.set_grad_enabled(trains), torch.autocast('cpu', torch.bfloat16):
        ran = kernels_of(lambda: branch(x))
        reason = gram_attention.refusal(COMPILE, x, branch.block.norm1, branch.block.attn)
    uses_gram = trains or not HAS_BF16
    assert ran == {'gram_attention' if uses_gram else 'direct_attention'}
    assert (reason is None) == uses_gram


@pytest.mark.parametrize('dims', [129, 192])
def test_gram_matrix_by_blocks(dims: int) -> None:
    branch = randomize(Branch(xcit_block(dims), 'attend')).double()
    check(branch, torch.randn(1, 700, dims, dtype=torch.float64), 'gram_attention')


def test_few_tokens_take_the_direct_form() -> None:
    """A backward pass saves more than it adds, so that fewer tokens suffice with one."""
    branch = Branch(xcit_block(384), 'attend').eval()

    def first_gram() -> int:
        few, many = 1, 3000
        while many - few > 1:
            middle = (few + many) // 2
            x = torch.empty(1, middle, 384, device='meta')
            is_gram = 'gram_attention' in kernels_of(lambda x=x: branch.to('meta')(x))
            few, many = (few, middle) if is_gram else (middle, many)
        return many

    with torch.no_grad():
        without_gradients = first_gram()
    assert 384 < first_gram() < without_gradients < 2000


def test_reduced_precision_takes_the_direct_form_on_other_devices() -> None:
    branch = Branch(xcit_block(384), 'attend').to('meta')
    for dtype, uses_gram in ((torch.float32, True), (torch.float16, False)):
        x = torch.empty(1, 10_000, 384, dtype=dtype, device='meta')
        ran = kernels_of(lambda x=x, dtype=dtype: branch.to(dtype)(x))
        assert ('gram_attention' in ran) == uses_gram


@PRECISIONS
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('norm', ['BN', 'GN'])
@pytest.mark.parametrize('variant', ['paper', 'vit-pytorch'])
def test_local_interaction(
    variant: str, norm: str, training: bool, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    block = randomize(xcit_block(variant=variant, norm=norm)).to(dtype)
    branch = Branch(block, 'interact', (5, 7)).train(training)
    x = torch.randn(2, 35, 24, dtype=dtype)
    trains = variant == 'paper' and norm == 'BN'
    check(branch, x, 'local_interaction', autocast, trains)


@PRECISIONS
@pytest.mark.parametrize('size', [(32, 48), (33, 47)])
def test_conv_stem(size: tuple[int, int], dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    stem = randomize(ConvStem(3, 16, 8, dict(type='BN'))).to(dtype).eval()

    class Stem(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)[0]

        def trained(self) -> list[nn.Parameter]:
            return list(self.block.parameters())

    branch, x = Stem(stem, ''), torch.randn(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        assert 'conv_stem' in kernels_of(lambda: branch(x))
    check(branch, x, 'conv_stem', autocast, trains=False)


def test_conv_stem_frees_its_folded_weights() -> None:
    stem, x = ConvStem(3, 64, 16, dict(type='BN')).eval(), torch.randn(1, 3, 32, 32)

    def run_stem(times: int) -> None:
        with torch.autocast('cpu', torch.bfloat16):
            for _ in range(times):
                stem(x)

    with torch.no_grad():
        assert peak_allocated(lambda: run_stem(4)) == peak_allocated(lambda: run_stem(1))


@pytest.mark.parametrize('training', [True, False])
def test_running_statistics(training: bool) -> None:
    """Updated once in training; another forward pass may come before the backward pass."""
    block = randomize(xcit_block()).double().train(training)
    x, other = torch.randn(2, 2, 35, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for mode in ('auto', 'reference'):
        copied = copy.deepcopy(block)
        with kernels.use(mode):
            out = copied.interact(x, (5, 7))
            copied.interact(other, (5, 7))
        bn = copied.local_mp.bn
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        results.append([bn.running_mean, bn.running_var, grad])
        assert bn.num_batches_tracked == 2 * training
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


BRANCHES = {
    'windows': lambda: Branch(twins_block(), 'attend', (30, 70)),
    'subsampled': lambda: Branch(subsampled_block(), 'attend', (30, 70)),
    'norm_mlp': lambda: Branch(twins_block(), 'feed_forward'),
    'gram_attention': lambda: Branch(xcit_block(12), 'attend'),
    'direct_attention': lambda: Branch(xcit_block(12), 'attend'),
    'local_interaction': lambda: Branch(xcit_block(12), 'interact', (30, 70)),
}
# Of 12 channels; few for `direct_attention`, and for the others a grid of 30 x 70.
NUM_TOKENS = dict.fromkeys(BRANCHES, 2100) | {'direct_attention': 5}
EVERY_BRANCH = pytest.mark.parametrize('kernel', BRANCHES)


@EVERY_BRANCH
def test_no_images(kernel: str) -> None:
    branch = randomize(BRANCHES[kernel]()).double().eval()
    x = torch.zeros(0, NUM_TOKENS[kernel], 12, dtype=torch.float64)
    check(branch, x, kernel, trains=kernel != 'local_interaction')


@pytest.mark.parametrize('frozen', [('norm',), ('attn', 'mlp', 'local_mp'), ('norm', 'gamma')])
@EVERY_BRANCH
def test_frozen_parts_get_no_gradient(kernel: str, frozen: tuple[str, ...]) -> None:
    branch = randomize(BRANCHES[kernel]()).double().eval()
    for name, parameter in branch.block.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    check(branch, torch.randn(1, NUM_TOKENS[kernel], 12, dtype=torch.float64), kernel)
    branch(torch.randn(1, NUM_TOKENS[kernel], 12, dtype=torch.float64)).sum().backward()
    assert all(p.grad is None for p in branch.parameters() if not p.requires_grad)


@EVERY_BRANCH
def test_input_is_left_alone(kernel: str) -> None:
    branch = BRANCHES[kernel]().eval()
    x = torch.randn(1, NUM_TOKENS[kernel], 12)
    before = x.clone()
    with torch.no_grad(), kernels.use('auto'):
        out = branch(x)
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()


def saved_by(branch: Branch, x: Tensor) -> tuple[float, float]:
    """Return what the kernel and the reference save for backward, in sizes of the input."""
    found = []
    for mode in ('auto', 'reference'):
        with kernels.use(mode):
            found.append(count_saved(lambda: branch(x)) / x.numel())
    return found[0], found[1]


def test_saved_for_backward() -> None:
    """Parameters and statistics add little to what is counted."""
    x = torch.randn(1, 2100, 12, requires_grad=True)
    ours, reference = saved_by(BRANCHES['norm_mlp'](), x)
    assert 1 <= ours < 1.1  # the input
    assert reference > 5  # also normalized, hidden and activated
    ours, reference = saved_by(BRANCHES['gram_attention'](), x)
    assert 1 <= ours < 1.2
    assert reference > 5
    few = torch.randn(100, NUM_TOKENS['direct_attention'], 12, requires_grad=True)
    ours, reference = saved_by(BRANCHES['direct_attention'](), few)
    assert 1 <= ours < 1.3
    assert reference > 5
    ours, reference = saved_by(BRANCHES['windows'](), x)
    assert ours < reference
    ours, reference = saved_by(BRANCHES['local_interaction'](), x)
    assert 2 <= ours < 2.1  # the input and the output of the first convolution
    assert reference > 5
    wide = torch.randn(1, 2100, 260, requires_grad=True)
    branch = Branch(twins_block(260, mlp_ratio=2), 'feed_forward')
    assert 3 <= saved_by(branch, wide)[0] < 3.6  # the input and the hidden activation


def count_backward(branch: Branch, x: Tensor, mode: str) -> int:
    """Count the FLOPs of a backward pass; the counter's hooks would put off a forward pass."""
    with kernels.use(mode):
        out = branch(x).sum()
    with FlopCounterMode(display=False) as counter:
        out.backward()
    return counter.get_total_flops()


def test_counted_operations_of_gram_attention() -> None:
    dims, num_tokens, batch_size, head_dims = 24, 400, 2, 8
    branch = Branch(xcit_block(dims), 'attend').double()  # oneDNN's products are not counted
    x = torch.randn(batch_size, num_tokens, dims, dtype=torch.float64, requires_grad=True)
    tokens, inner = batch_size * num_tokens, batch_size * dims * dims
    expected = 2 * (3 * tokens * dims**2 + inner * (4 * dims + 11 * head_dims))
    assert expected <= count_backward(branch, x, 'auto') <= 1.02 * expected


@EVERY_BRANCH
def test_second_derivative_is_refused(kernel: str) -> None:
    branch = randomize(BRANCHES[kernel]()).double().eval()
    x = torch.randn(1, NUM_TOKENS[kernel], 12, dtype=torch.float64, requires_grad=True)

    def product() -> Tensor:
        (gradient,) = torch.autograd.grad(branch(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    with kernels.use('reference'):
        product()
    with kernels.use('auto'), pytest.raises(RuntimeError, match=r"kernels\.use\('reference'\)"):
        product()
