"""The mode of a call: training, inference, or a graph that is compiled or exported.

Training and inference are told apart by autograd, not by `module.training`: with gradients enabled
a model in evaluation mode counts as training, because a backward pass may follow. A graph that is
compiled has the mode COMPILE with and without gradients. A graph of `torch.export` or of
`torch.jit.trace` has the mode EXPORT.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor

from mmvit_backbones.layers.plain import PLAIN_TENSORS

TRAINING, INFERENCE, COMPILE, EXPORT = 'training', 'inference', 'compile', 'export'
# What tensors and parameters become while `torch.export` runs a model.
EXPORT_TENSORS = PLAIN_TENSORS | {FakeTensor}

try:
    from torch._subclasses.functional_tensor import FunctionalTensor

    EXPORT_TENSORS |= {FunctionalTensor}
except ImportError:  # before 2.2
    pass
try:
    from torch.fx.experimental import _config as fx_config
except ImportError:  # before 2.2
    fx_config = None  # type: ignore[assignment]
try:
    from torch.fx.experimental.symbolic_shapes import has_static_value
except ImportError:  # before 2.4
    has_static_value = None  # type: ignore[assignment]
try:
    from torch.fx.experimental.symbolic_shapes import optimization_hint
except ImportError:
    optimization_hint = None  # type: ignore[assignment]


def current_mode() -> str:
    """Return the mode of a call made now."""
    if torch.jit.is_tracing() or _is_exporting():
        return EXPORT
    if _is_compiling():
        return COMPILE
    return TRAINING if torch.is_grad_enabled() else INFERENCE


def _is_compiling() -> bool:
    if hasattr(torch.compiler, 'is_compiling'):  # since 2.2
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def _is_exporting() -> bool:
    # Before 2.7, an export has the mode COMPILE.
    return torch.compiler.is_exporting() if hasattr(torch.compiler, 'is_exporting') else False


def is_static(*sizes: int) -> bool:
    """Whether these sizes are fixed: always in eager mode, in a graph with static shapes."""
    if torch.jit.is_tracing():  # sizes are tensors
        return False
    if has_static_value is None:
        return all(isinstance(size, int) for size in sizes)
    return all(has_static_value(size) for size in sizes)


def has_unguarded_sizes() -> bool:
    """Whether `torch.export` puts no guards on dynamic sizes to tell 1 from larger ones.

    `mmvit_backbones.export` sets it so, and PyTorch's ONNX exporter.
    """
    return bool(getattr(fx_config, 'backed_size_oblivious', False))


def typical_size(size: int) -> int | None:
    """Return a fixed size as it is, and for a dynamic size its value in the example input.

    None where PyTorch does not give that value: in a trace, and in Dynamo (`torch.export` with
    `strict=True`).
    """
    if torch.jit.is_tracing():
        return None
    if is_static(size):
        return size
    if optimization_hint is None or torch.compiler.is_dynamo_compiling():
        return None
    return optimization_hint(size)
