"""Attention between tokens.

Legend: B batch, h heads, d channels per head, N queries, M keys.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmvit_backbones.layers.seam import replaceable


@replaceable
def attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, mask: Tensor | None = None
) -> Tensor:
    """Return `softmax(q k^T / sqrt(d)) v` (Vaswani et al., arXiv 1706.03762, section 3.2.1).

    Args:
        q: Queries (B, h, N, d).
        k: Keys (B, h, M, d).
        v: Values (B, h, M, d).
        dropout: Applied to the attention weights (B, h, N, M); a hook on it sees them.
        mask: Booleans that broadcast to the weights, true where a key takes part.

    Returns:
        Tokens (B, h, N, d).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, N, M)
    if mask is not None:
        scores = scores.masked_fill(~mask, float('-inf'))
    return dropout(scores.softmax(dim=-1)) @ v
