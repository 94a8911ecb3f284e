"""Which kernel serves which layer in which mode.

A call of a `replaceable` function arrives at `Dispatcher`. It looks up the kernel in
`BRANCH_KERNELS` or `FUNCTION_KERNELS` and runs it, unless there is a reason not to; then it runs
the reference. The reasons that concern device, dtype and sizes are the kernel's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmvit_backbones.backbones.twins_svt import TwinsSVTBlock
from mmvit_backbones.backbones.xcit import XCiTBlock
from mmvit_backbones.kernels import (
    conv_stem,
    direct_attention,
    fused_attention,
    gram_attention,
    local_interaction,
    norm_mlp,
    padding,
    subsampled,
    windows,
)
from mmvit_backbones.kernels.autograd import is_transformed
from mmvit_backbones.kernels.expected import why_other_class
from mmvit_backbones.kernels.modes import (
    COMPILE,
    EXPORT,
    EXPORT_TENSORS,
    INFERENCE,
    TRAINING,
    current_mode,
)
from mmvit_backbones.layers.attention import attention
from mmvit_backbones.layers.conv_stem import ConvStem
from mmvit_backbones.layers.cross_covariance_attention import CrossCovarianceAttention
from mmvit_backbones.layers.local_patch_interaction import LocalPatchInteraction
from mmvit_backbones.layers.mlp import MLP
from mmvit_backbones.layers.plain import PLAIN_TENSORS, has_global_hooks, why_not_plain
from mmvit_backbones.layers.subsampled_attention import SubsampledAttention
from mmvit_backbones.layers.tokens import crop, pad_to_multiple
from mmvit_backbones.layers.window_attention import WindowAttention

EAGER = frozenset((TRAINING, INFERENCE))
ALL_BUT_EXPORT = EAGER | {COMPILE}
ALL_MODES = ALL_BUT_EXPORT | {EXPORT}


@dataclass(frozen=True)
class Kernel:
    """Another way to compute what a reference computes.

    Attributes:
        name: Name in `use(disable=...)` and in `explain`.
        modes: Modes in which it may run.
        run: Computes the result.
        refusal: Returns why the kernel does not serve a call, None if it does.
    """

    name: str
    modes: frozenset[str]
    run: Callable[..., Any]
    refusal: Callable[..., str | None]


class Branch(NamedTuple):
    """Attributes of a block that make up a residual branch, `scale * layer(norm(x))`."""

    norm: str
    layer: str
    scale: str | None = None


BRANCHES: dict[Callable[..., Any], Branch] = {
    TwinsSVTBlock.attend: Branch('norm1', 'attn'),
    TwinsSVTBlock.feed_forward: Branch('norm2', 'mlp'),
    XCiTBlock.attend: Branch('norm1', 'attn', 'gamma1'),
    XCiTBlock.interact: Branch('norm3', 'local_mp', 'gamma3'),
    XCiTBlock.feed_forward: Branch('norm2', 'mlp', 'gamma2'),
}
# By the class of the branch's layer; the first kernel that does not refuse runs. A kernel serves
# that class inside a branch of `BRANCHES` only. The functions, of tokens x (B, N, C) and a scale
# (C), are
#     refusal(mode, x, norm, layer, *rest) -> str | None
#     run(mode, x, norm, layer, scale, residual, *rest) -> Tensor
# with the arguments `rest` that the branch takes after x. `run` returns `scale * layer(norm(x))`,
# plus `x` if `residual` is true. `scale` is None where the block has none or `fuse` has folded it;
# the weight and bias of a folded norm are None too.
BRANCH_KERNELS: dict[type[nn.Module], tuple[Kernel, ...]] = {
    CrossCovarianceAttention: (
        Kernel('gram_attention', ALL_MODES, gram_attention.run, gram_attention.refusal),
        Kernel('direct_attention', EAGER, direct_attention.run, direct_attention.refusal),
    ),
    LocalPatchInteraction: (
        Kernel(
            'local_interaction',
            frozenset((TRAINING,)),
            local_interaction.run,
            local_interaction.refusal,
        ),
    ),
    MLP: (Kernel('norm_mlp', ALL_BUT_EXPORT, norm_mlp.run, norm_mlp.refusal),),
    SubsampledAttention: (Kernel('subsampled', EAGER, subsampled.run, subsampled.refusal),),
    WindowAttention: (Kernel('windows', ALL_BUT_EXPORT, windows.run, windows.refusal),),
}
# By the replaceable function. The functions are
#     refusal(mode, *arguments) -> str | None
#     run(mode, *arguments) -> Any, what the function returns
FUNCTION_KERNELS: dict[Callable[..., Any], Kernel] = {
    ConvStem.forward: Kernel(
        'conv_stem', frozenset((INFERENCE,)), conv_stem.run, conv_stem.refusal
    ),
    attention: Kernel('fused_attention', ALL_MODES, fused_attention.run, fused_attention.refusal),
    pad_to_multiple: Kernel('pad', frozenset((TRAINING,)), padding.run_pad, padding.pad_refusal),
    crop: Kernel('crop', EAGER, padding.run_crop, padding.crop_refusal),
}
KERNEL_NAMES = tuple(
    kernel.name for kernel in (*chain(*BRANCH_KERNELS.values()), *FUNCTION_KERNELS.values())
)


class Choice(NamedTuple):
    """What a call runs.

    Attributes:
        function: The replaceable function that was called.
        module: The layer of the branch, or the first module among the arguments; None without one.
        kernel: The kernel that runs; None for the reference.
        reason: Why no kernel runs; empty if one does.
    """

    function: Callable[..., Any]
    module: nn.Module | None
    kernel: Kernel | None
    reason: str


class Dispatcher:
    """Chooses between kernels and references; installed in `mmvit_backbones.layers.seam`.

    Args:
        disabled: Names of kernels that never run.
        record: List to append each choice to.
    """

    def __init__(self, disabled: Iterable[str] = (), record: list[Choice] | None = None) -> None:
        self.disabled = frozenset(disabled)
        self.record = record

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        mode = current_mode()
        branch = BRANCHES.get(function)
        if branch is not None:
            choice = self._choose_for_branch(mode, function, branch, args)
        else:
            choice = self._choose(mode, function, args)
        if self.record is not None:
            self.record.append(choice)
        if choice.kernel is None:
            return function.__wrapped__(*args)  # type: ignore[attr-defined]
        if branch is not None:
            return _run_branch(mode, choice.kernel, branch, *args)
        return choice.kernel.run(mode, *args)

    def _choose_for_branch(
        self, mode: str, function: Callable[..., Any], branch: Branch, args: tuple[Any, ...]
    ) -> Choice:
        block, x = args[:2]
        norm, layer = getattr(block, branch.norm), getattr(block, branch.layer)
        reasons = []
        for kernel in BRANCH_KERNELS.get(type(layer), ()):
            reason = self._general_refusal(mode, kernel, x, (block.drop_path, norm, layer))
            reason = (
                reason
                or why_other_class(nn.LayerNorm, norm)
                or why_other_class(DropPath, block.drop_path)
                or kernel.refusal(mode, x, norm, layer, *args[2:])
            )
            if reason is None:
                return Choice(function, layer, kernel, '')
            reasons.append(reason)
        message = '; '.join(dict.fromkeys(reasons)) or 'there is no kernel for this layer'
        return Choice(function, layer, None, message)

    def _choose(self, mode: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Choice:
        kernel = FUNCTION_KERNELS.get(function)
        modules = tuple(arg for arg in args if isinstance(arg, nn.Module))
        module = modules[0] if modules else None
        if kernel is None:
            return Choice(function, module, None, 'there is no kernel for this function')
        x = next(arg for arg in args if not isinstance(arg, nn.Module))
        reason = self._general_refusal(mode, kernel, x, modules) or kernel.refusal(mode, *args)
        return Choice(function, module, None if reason else kernel, reason or '')

    def _general_refusal(
        self, mode: str, kernel: Kernel, x: Any, modules: tuple[nn.Module, ...]
    ) -> str | None:
        """Return why no kernel may serve a call, None if one may.

        Args:
            mode: The mode.
            kernel: The kernel for the function.
            x: Input of the function.
            modules: Modules whose `forward` the kernel may bypass; with all their children.
        """
        if kernel.name in self.disabled:
            return 'the kernel is disabled'
        if mode not in kernel.modes:
            return f'the kernel does not run in mode {mode}'
        if mode != COMPILE and is_transformed():  # compilers trace derivatives of the graph
            return 'a forward-mode derivative or a torch.func transform is active'
        tensors = EXPORT_TENSORS if mode == EXPORT else PLAIN_TENSORS
        if type(x) not in tensors:
            return f'the input is a {type(x).__name__}'
        if has_global_hooks():
            return 'a hook is registered for all modules'
        return next(filter(None, (why_not_plain(module, tensors) for module in modules)), None)


def _run_branch(
    mode: str, kernel: Kernel, branch: Branch, block: Any, x: Tensor, *args: Any
) -> Tensor:
    """Return `x + drop_path(scale * layer(norm(x)))` by a kernel."""
    scale = None if branch.scale is None else getattr(block, branch.scale)
    scale = scale if isinstance(scale, Tensor) else None  # 1.0 once it is folded
    is_dropping = block.drop_path.training and block.drop_path.drop_prob > 0
    out = kernel.run(
        mode,
        x,
        getattr(block, branch.norm),
        getattr(block, branch.layer),
        scale,
        not is_dropping,
        *args,
    )
    return x + block.drop_path(out) if is_dropping else out
