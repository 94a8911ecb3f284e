"""From pixels, or from a finer map, to tokens.

Legend: B batch, H x W pixels or tokens, C channels, p patch size.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.layout import channels_last
from mmvit_backbones.layers.norm import norm_map
from mmvit_backbones.layers.padding import pad_to_multiple


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected and normed (Twins, arXiv 2104.13840, section 3.1).

    Patches that reach over the bottom or right border are filled up with zeros, so that no pixel
    is lost.

    Args:
        in_dims: Channels of the input.
        dims: Channels of the tokens.
        patch_size: Side of a square patch.
        pre_norm: Norm the values of each patch before the projection (vit-pytorch's structure).
    """

    def __init__(self, in_dims: int, dims: int, patch_size: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pre_norm = nn.LayerNorm(in_dims * patch_size**2) if pre_norm else None
        self.proj = nn.Conv2d(in_dims, dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(dims)

    def forward(self, x: Tensor) -> Tensor:
        """Embed a map (B, in_dims, H, W) as tokens (B, ceil(H/p), ceil(W/p), dims)."""
        p = self.patch_size
        x = pad_to_multiple(x, p)
        if self.pre_norm is None:
            return norm_map(channels_last(self.proj(x)), self.norm)
        patches = rearrange(x, 'b c (h i) (w j) -> b h w (c i j)', i=p, j=p)
        tokens = F.linear(self.pre_norm(patches), self.proj.weight.flatten(1), self.proj.bias)
        return norm_map(tokens, self.norm)
