"""What a layer computes, heard by hooks. The layers know nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmvit_backbones import kernels
from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.checkpoints.networks import find_backbone, is_described

Kind = TypeVar('Kind', bound=nn.Module)


@contextmanager
def listen(
    modules: Iterable[nn.Module], keep: Callable[[Tensor], Tensor] = lambda output: output
) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the outputs of modules while the model runs, by the reference path.

    Args:
        modules: Modules whose output is one tensor. Attention weights are the output of an
            attention layer's `attn_drop`.
        keep: What to keep of an output.

    Yields:
        Module -> what was kept, filled by the model's next pass.
    """
    heard: dict[nn.Module, Tensor] = {}

    def hear(module: nn.Module, inputs: Any, output: Tensor) -> None:
        heard[module] = keep(output)

    handles = [module.register_forward_hook(hear) for module in modules]
    try:
        with kernels.use('reference'):
            yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own mode after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def run_and_hear(
    model: nn.Module, modules: Iterable[nn.Module], x: Tensor
) -> dict[nn.Module, Tensor]:
    """Run a model in evaluation mode on images (B, C, H, W) and return outputs of its modules."""
    with evaluating(model), torch.no_grad(), listen(modules) as heard:
        model(x)
    return heard


def the_only(model: nn.Module, kind: type[Kind]) -> Kind:
    """Return the one module of a kind that a model is or holds.

    Raises:
        ValueError: If there is none, or more than one.
    """
    return find_backbone(model, lambda module: isinstance(module, kind), kind.__name__)[1]


def our_backbone(model: nn.Module) -> Backbone:
    """Return the one backbone of this package that a model is or holds.

    Raises:
        ValueError: If there is none, or more than one.
    """
    return find_backbone(model, is_described, 'backbone of this package')[1]


def check_index(name: str, index: int, count: int) -> int:
    """Return an index in [0, count), counted from the end if it is negative.

    Raises:
        ValueError: If it is out of range.
    """
    if not -count <= index < count:
        raise ValueError(f'{name} must lie in {-count} to {count - 1}, got {index}')
    return index % count
