"""The feed-forward half of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit_backbones.layers.folding import Scale, fold_norm, fold_scale


class MLP(nn.Module):
    """Linear layer, GELU, linear layer, on the last dimension.

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

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (..., C)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))

    def fold_norm(self, norm: nn.Module) -> None:
        """Move the affine part of the norm before this layer into it."""
        fold_norm(norm, self.fc1)

    def fold_scale(self, scale: Scale) -> Scale:
        """Move the LayerScale after this layer into it; returns the scale that is left."""
        return fold_scale(self.fc2, scale)
