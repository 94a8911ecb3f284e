"""From a model to a graph for any batch and image size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmvit_backbones import kernels
from mmvit_backbones.export.adaptive_pooling import replace_adaptive_pooling
from mmvit_backbones.fuse import fuse
from mmvit_backbones.layers.position import PositionEncodingGenerator

FUSED, EXPLICIT = ATTENTIONS = ('fused', 'explicit')
INPUT = 'images'
MIN_SIZE = 32  # pixels


class Flat(nn.Module):
    """A model whose outputs are a tuple of tensors, in the order in which they stand.

    Args:
        model: Model for inference; its forward takes images and returns tensors in tuples and
            lists.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten(self.model(images)))


def flatten(outputs: Any) -> list[Tensor]:
    """Return the tensors in nested tuples and lists, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in flatten(part)]


def prepare(model: nn.Module) -> Flat:
    """Return a copy of a model for inference that can be captured for any size."""
    fused = fuse(model)
    replace_adaptive_pooling(fused)
    pad_before_convolution(fused)
    return Flat(fused).eval()


def pad_before_convolution(model: nn.Module) -> None:
    """Make the zero padding of position encodings an operator of its own.

    PyTorch's choice of a memory format for a convolution makes a guard on whether its input has one
    row or several. A padded feature map has several.
    """
    for module in list(model.modules()):
        if isinstance(module, PositionEncodingGenerator):
            conv = module.proj[0]
            if type(conv) is not nn.Conv2d:  # adapted or quantized
                continue
            rows, columns = (int(side) for side in conv.padding)
            conv.padding = (0, 0)
            module.proj = nn.Sequential(nn.ZeroPad2d((columns, columns, rows, rows)), conv)


def capture(
    model: nn.Module,
    images: Tensor,
    attention: str = FUSED,
    dynamic: bool = True,
    min_size: int = MIN_SIZE,
) -> ExportedProgram:
    """Record a model as a graph of plain operators by `torch.export`.

    Args:
        model: A backbone, a classifier, or any model from images to (nested) tuples of tensors.
        images: Example (B, C, H, W), with B of 2 or more and sides of 64 px or more where the graph
            is dynamic. The graph computes cross-covariance attention in the form that takes fewer
            operations at this size; both forms are exact at any size.
        attention: `'fused'` keeps attention between tokens one operator, which runtimes may replace
            by a kernel of theirs. `'explicit'` writes it as matrix product, softmax and matrix
            product, for runtimes that fail on the operator.
        dynamic: Record a graph for any batch and any image size; else for that of the example
            alone.
        min_size: Shortest side in pixels of a dynamic graph.

    Returns:
        The graph, with one input `images` and a flat tuple of outputs.

    Raises:
        ValueError: If `attention` is not known.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f'attention must be one of {ATTENTIONS}, got {attention!r}')
    shapes = None
    if dynamic:
        height, width = (Dim(name, min=min_size) for name in ('height', 'width'))
        shapes = ({0: Dim('batch', min=1), 2: height, 3: width},)
    disabled = ('fused_attention',) if attention == EXPLICIT else ()
    with kernels.use('auto', disable=disabled), torch.no_grad(), _any_size():
        return torch.export.export(prepare(model), (images,), dynamic_shapes=shapes)


@contextmanager
def _any_size() -> Iterator[None]:
    """Let PyTorch take a dynamic size to be 1: one image, or one row of tokens at 32 px.

    By default it takes a dynamic size to be 2 or more. Its ONNX exporter sets this option too.
    Where this PyTorch lacks it, graphs start at 33 px.
    """
    from torch.fx.experimental import _config

    if not hasattr(_config, 'backed_size_oblivious'):
        yield
        return
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield
