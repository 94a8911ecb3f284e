"""The feed-forward half of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.layer_scale import fold_scale
from mmvit_backbones.layers.lean import add_residual, norm_mlp
from mmvit_backbones.layers.packed_linear import PackedLinear, can_pack, packed_norm_mlp


class MLP(nn.Module):
    """Linear, GELU, linear, on the last dimension.

    Args:
        dims: Channels in and out.
        hidden_dims: Channels between.
        drop_rate: Dropout probability after each linear layer.
    """

    def __init__(self, dims: int, hidden_dims: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm | None = None,
        scale: Tensor | None = None,
        residual: bool = False,
    ) -> Tensor:
        """Transform tokens.

        Args:
            x: Tokens (..., C).
            norm: Norm before the first linear layer.
            scale: LayerScale, a factor of each channel of the output (C).
            residual: Add `x` to the result.
        """
        weight, bias = fold_scale(self.fc2, scale)
        if norm is None or (self.training and self.drop.p > 0):
            normed = x if norm is None else norm(x)
            hidden = self.drop(F.gelu(self.fc1(normed)))
            branch = self.drop(F.linear(hidden, weight, bias))
            return add_residual(x, branch) if residual else branch
        if isinstance(self.fc1, PackedLinear) and scale is None and residual and can_pack(x):
            return packed_norm_mlp(x, norm, self.fc1, self.fc2)
        return norm_mlp(x, norm, self.fc1, weight, bias, residual)
