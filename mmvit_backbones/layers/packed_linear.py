"""Linear layers for inference whose weights lie in the order in which a CPU's products read them.

oneDNN brings a weight into that order in each call, or once, ahead. The weight itself stays, for
GPUs, compilers and full double precision; the copy is made in the first call that can use it.

Legend: C channels in, D channels out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.lean import cut_rows, is_traced
from mmvit_backbones.layers.precision import can_use_onednn, compute_dtype, without_autocast


class PackedLinear(nn.Linear):
    """A linear layer that keeps its weight in oneDNN's order, too.

    The copy is renewed when the weight is replaced or changed in place, but not when it is written
    to through `.data`, which PyTorch does not count.

    Args:
        linear: Layer whose parameters it takes over.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, device='meta'
        )
        self.weight, self.bias = linear.weight, linear.bias
        # What was packed, its version then, and the result. What is held keeps its address.
        self._packed: dict[torch.dtype, tuple[Tensor, int, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_packed': {}}  # copies and files need no derived values

    def forward(self, x: Tensor, activate: bool = False) -> Tensor:
        """Transform the last dimension from C to D channels.

        Args:
            x: Tokens (..., C).
            activate: End with GELU.
        """
        if not can_pack(x):
            out = super().forward(x)
            return F.gelu(out) if activate else out
        dtype = compute_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        # At full precision the activation is as fast in an operation of its own.
        attr, algorithm = ('none', '')
        if activate and dtype == torch.bfloat16:
            attr, algorithm = ('gelu', 'none')
        with without_autocast(x.device):
            out = torch.ops.mkldnn._linear_pointwise(
                x.to(dtype), self._weight_in_order(dtype), bias, attr, [], algorithm
            )
            if activate and attr == 'none':
                torch.ops.aten.gelu.out(out, out=out)
        return out

    def _weight_in_order(self, dtype: torch.dtype) -> Tensor:
        weight = self.weight.detach()
        version = 0 if weight.is_inference() else weight._version
        source, packed_version, packed = self._packed.get(dtype, (None, -1, weight))
        if source is None or source.data_ptr() != weight.data_ptr() or packed_version != version:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
            self._packed[dtype] = (weight, version, packed)
        return packed


def can_pack(x: Tensor) -> bool:
    """Whether layers on `x` are computed without gradients and by oneDNN, on a CPU."""
    if torch.is_grad_enabled() or is_traced():
        return False
    return can_use_onednn(x.device, compute_dtype(x))


def packed_norm_mlp(x: Tensor, norm: nn.LayerNorm, fc1: PackedLinear, fc2: nn.Module) -> Tensor:
    """Return `x + fc2(gelu(fc1(norm(x))))` of tokens (..., C), a part of the rows at a time."""
    rows = x.flatten(0, -2)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    sizes = cut_rows(rows, fc1.out_features * compute_dtype(x).itemsize)
    for part, out_part in zip(rows.split(sizes), out.view(rows.shape).split(sizes), strict=True):
        torch.add(part, fc2(fc1(norm(part), activate=True)), out=out_part)
    return out
