"""From pixels, or from a finer feature map, to tokens.

Legend: B batch, H x W pixels or tokens, C channels, p patch size, N = ceil(H/p) ceil(W/p) tokens.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from mmvit_backbones.layers.tokens import Size, pad_to_multiple, to_tokens


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected and normalized (Twins, arXiv 2104.13840, section 3.1).

    Patches that reach over the bottom or right border are zero-padded, so that no pixel is lost.

    Args:
        in_dims: Channels of the input.
        dims: Channels of the tokens.
        patch_size: Side of a square patch.
        pre_norm: Normalize the values of each patch before the projection (variant
            `'vit-pytorch'`).
    """

    def __init__(self, in_dims: int, dims: int, patch_size: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.pre_norm = nn.LayerNorm(in_dims * patch_size**2) if pre_norm else None
        self.proj = nn.Conv2d(in_dims, dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(dims)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Embed a feature map (B, in_dims, H, W).

        Returns:
            Tokens (B, N, dims) and the rows and columns of their grid.
        """
        x = pad_to_multiple(x, self.patch_size)
        if self.pre_norm is not None:
            p = self.patch_size
            patches = rearrange(x, 'b c (h i) (w j) -> b h w (c i j)', i=p, j=p)
            x = rearrange(self.pre_norm(patches), 'b h w (c i j) -> b c (h i) (w j)', i=p, j=p)
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])
