"""What every backbone of this package does the same way: checks, freezing, layer depth."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmvit_backbones.backbones.feature_info import FeatureInfo
from mmvit_backbones.hub import OnHub
from mmvit_backbones.layers.seam import Dispatch, get_dispatcher, use_dispatcher
from mmvit_backbones.layers.tokens import Size

Arch = TypeVar('Arch')


def resolve_arch(arch: str | Mapping[str, Any] | Arch, known: Mapping[str, Arch]) -> Arch:
    """Turn the `arch` argument of a backbone into its dataclass.

    Args:
        arch: A name in `known`, a mapping of the dataclass's fields, or the dataclass itself. In a
            mapping, `layout` is the old name of `variant`.
        known: Named architectures, all of one dataclass.

    Raises:
        ValueError: If the name is not known.
        TypeError: If a field of the mapping is missing or does not exist.
    """
    arch_class = type(next(iter(known.values())))
    if isinstance(arch, arch_class):
        return arch
    if isinstance(arch, Mapping):
        as_tuples = {
            'variant' if k == 'layout' else k: tuple(v) if isinstance(v, list) else v
            for k, v in arch.items()
        }
        try:
            return arch_class(**as_tuples)
        except TypeError as error:
            names = [field.name for field in fields(arch_class)]  # type: ignore[arg-type]
            raise TypeError(
                f'arch: {error}; the fields of {arch_class.__name__} are {names}'
            ) from None
    if arch not in known:
        raise ValueError(f'arch must be one of {sorted(known)} or a dict, got {arch!r}')
    return known[arch]  # type: ignore[index]


def check_rate(name: str, rate: float) -> float:
    """Return `rate` if it is a probability below 1, else raise ValueError."""
    if not 0 <= rate < 1:
        raise ValueError(f'{name} must lie in [0, 1), got {rate}')
    return rate


def check_out_indices(out_indices: Sequence[int], count: int, unit: str) -> tuple[int, ...]:
    """Return the chosen indices as a tuple.

    Args:
        out_indices: Strictly increasing indices.
        count: How many there are to choose from.
        unit: What is counted, for the message ("stages", "blocks").

    Raises:
        ValueError: If an index is out of range, repeated or out of order, or none is given.
    """
    chosen = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    in_range = all(isinstance(i, int) and 0 <= i < count for i in chosen)
    increasing = all(a < b for a, b in itertools.pairwise(chosen))
    if not chosen or not in_range or not increasing:
        raise ValueError(
            f'out_indices must be strictly increasing indices of the {count} {unit} '
            f'(0 to {count - 1}), got {out_indices!r}'
        )
    return chosen


@contextmanager
def _recomputation(block: nn.Module, dispatcher: Dispatch | None) -> Iterator[None]:
    """Context in which gradient checkpointing runs a block a second time, in the backward pass.

    The dispatcher is that of the first time, so that the same kernels run. BatchNorm layers keep
    their statistics, which the first time has updated.

    Args:
        block: The block.
        dispatcher: The dispatcher of the first time.
    """
    before = [
        (norm, norm.momentum, norm.num_batches_tracked, norm.num_batches_tracked.clone())
        for norm in block.modules()
        if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None
    ]
    for norm, *_ in before:
        norm.momentum = 0.0
    try:
        with use_dispatcher(dispatcher):
            yield
    finally:
        for norm, momentum, counter, count in before:
            norm.momentum = momentum
            counter.copy_(count)


class Backbone(BaseModule, OnHub):
    """Base of the dense backbones.

    A subclass sets `out_channels`, `out_strides` and `out_indices` (one entry per returned feature
    map), keeps its blocks or stages in `blocks`, names the modules that `frozen_stages` covers and
    gives the depth of a parameter.

    Args:
        in_channels: Channels of the image.
        frozen_stages: How much of the front is frozen: -1 nothing, 0 the stem, k the stem and the
            first k stages (Twins-SVT) or blocks (XCiT), as in mmdetection's own backbones.
        max_frozen_stages: The largest value allowed.
        norm_eval: Keep all BatchNorm layers in evaluation mode while training.
        with_cp: Recompute each block in backward to save memory (gradient checkpointing).
        init_cfg: Settings of MMEngine's `init_weights()`. The constructor has initialized the
            model already.

    Raises:
        ValueError: If `in_channels` or `frozen_stages` is out of range.
    """

    min_size: ClassVar[int] = 32  # pixels: one token of the coarsest feature map
    # Parts of the names of weights without weight decay, here and in the pooling neck.
    no_weight_decay_keywords: ClassVar[tuple[str, ...]] = ()
    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    out_indices: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        frozen_stages: int,
        max_frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels < 1:
            raise ValueError(f'in_channels must be at least 1, got {in_channels}')
        if not -1 <= frozen_stages <= max_frozen_stages:
            raise ValueError(
                f'frozen_stages must lie in -1 to {max_frozen_stages}, got {frozen_stages}'
            )
        self.pretrained_cfg: dict[str, Any] = {}  # see `create_model`
        self.creation = {}
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of transformer blocks."""

    @abstractmethod
    def _frozen_modules(self) -> Iterable[nn.Module]:
        """The modules that `frozen_stages` covers."""

    @abstractmethod
    def _block_of(self, param_name: str) -> int:
        """0-based block a parameter belongs to; -1 for the stem, `num_layers` for what follows."""

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: Name of this backbone in the model, such as `'backbone.'`.

        Returns:
            The depth, 0 for the stem, and the number of depths, `num_layers + 2`. What comes after
            the backbone has the last depth.
        """
        num_depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        return self._block_of(param_name.removeprefix(prefix)) + 1, num_depths

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that should have no weight decay, beside norms and biases."""
        return {
            name
            for name, _ in self.named_parameters()
            if any(keyword in name for keyword in self.no_weight_decay_keywords)
        }

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and block of each feature map."""
        maps = zip(self.out_channels, self.out_strides, self.out_indices, strict=True)
        return FeatureInfo(
            dict(num_chs=channels, reduction=stride, module=f'blocks.{index}')
            for channels, stride, index in maps
        )

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps, as `forward` does."""
        return self(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward to save memory, or not; sets `with_cp`."""
        self.with_cp = enable

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen modules stay in evaluation mode, BatchNorm too if `norm_eval`."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def _run_block(self, block: nn.Module, x: Tensor, size: Size) -> Tensor:
        if self.with_cp and x.requires_grad and torch.is_grad_enabled():
            return checkpoint(
                block,
                x,
                size,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _recomputation(block, get_dispatcher())),
            )
        return block(x, size)

    def _embed(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Size]:
        """Turn images or a feature map into tokens (B, N, C) of a grid of the returned size.

        Whether images and weights fit is asked only after torch has refused them: what autocast,
        FSDP's mixed precision, adapters or quantized layers make of either is not known before.
        """
        try:
            return layer(x)
        except RuntimeError as error:
            problem = _misfit(x, layer)
            if problem:
                raise ValueError(problem) from error
            raise

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(
                f'x must be a torch.Tensor, got {type(x).__module__}.{type(x).__name__}'
            )
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'x must be a batch of images (B, {self.in_channels}, H, W), got {tuple(x.shape)}'
            )
        if not x.is_floating_point():
            raise ValueError(f'x must hold floating-point values, got {x.dtype}')
        if x.layout is not torch.strided:
            raise ValueError(f'x must be a dense tensor, got {x.layout}')
        if x.is_meta and not any(p.is_meta for p in self.parameters()):
            raise ValueError('x must have values where the model has: it is on the device meta')
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'x must be at least {self.min_size} px high and wide, got '
                f'{x.shape[2]} x {x.shape[3]}'
            )


def _misfit(x: Tensor, layer: nn.Module) -> str:
    """Say why a layer cannot take a tensor, as far as device and dtype tell; `''` if they fit."""
    weight = next((p for p in layer.parameters() if p.is_floating_point()), None)
    if weight is None:
        return ''
    if x.device != weight.device:
        return f"x must be on the model's device, {weight.device}, got {x.device}"
    if x.dtype != weight.dtype:
        return f"x must have the model's dtype, {weight.dtype}, or autocast be on, got {x.dtype}"
    return ''
