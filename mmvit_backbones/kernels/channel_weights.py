"""The attention weights of cross-covariance attention, and their gradients.

`gram_attention` and `direct_attention` share them; they differ in how they get the products.

Legend: B batch, h heads, d channels per head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmvit_backbones.kernels.expected import why_no_bias, why_other_class
from mmvit_backbones.layers.cross_covariance_attention import MIN_LENGTH, CrossCovarianceAttention

MIN_SQUARED_LENGTH = MIN_LENGTH**2


def why_other_layers(layer: CrossCovarianceAttention) -> str | None:
    """Return a message about an inner layer that the kernels do not know; None if there is none."""
    return (
        why_other_class(nn.Linear, layer.qkv, layer.proj)
        or why_other_class(nn.Dropout, layer.attn_drop, layer.drop)
        or why_no_bias(layer.proj)
    )


class Weighed(NamedTuple):
    """Attention weights and what they were made of.

    Attributes:
        weights: A (h, d, B, d), queries first; sums over the last dimension are 1.
        cosines: Cosines of queries and keys (h, d, B, d).
        squared_lengths: Those of queries and keys over all tokens (h, B, 2d).
    """

    weights: Tensor
    cosines: Tensor
    squared_lengths: Tensor


def weigh(products: Tensor, squared_lengths: Tensor, temperature: Tensor) -> Weighed:
    """Return the weights from inner products over all tokens.

    Args:
        products: Of queries and keys (h, d, B, d), in fp32 at least.
        squared_lengths: Of queries and keys (h, B, 2d).
        temperature: Factors (h, 1, 1).
    """
    q_inverse, k_inverse = _inverse_lengths(squared_lengths)
    cosines = products * q_inverse * k_inverse
    return Weighed((cosines * temperature[..., None]).softmax(dim=-1), cosines, squared_lengths)


def weigh_backward(
    grad_weights: Tensor, weighed: Weighed, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the products, the squared lengths and the temperature."""
    weights, cosines, squared_lengths = weighed
    grad_logits = grad_weights * weights
    grad_logits -= grad_logits.sum(-1, keepdim=True) * weights
    grad_temperature = (grad_logits * cosines).sum((1, 2, 3)).view(temperature.shape)
    grad_cosines = grad_logits * temperature[..., None]
    q_inverse, k_inverse = _inverse_lengths(squared_lengths)
    grad_products = grad_cosines * q_inverse * k_inverse
    # A length divides all cosines of its row or column.
    weighted = grad_cosines * cosines
    grad_lengths = torch.cat((weighted.sum(3).transpose(1, 2), weighted.sum(1)), dim=-1)
    grad_lengths = grad_lengths / (-2 * squared_lengths)  # (h, B, 2d)
    grad_lengths = grad_lengths.masked_fill(squared_lengths < MIN_SQUARED_LENGTH, 0)
    return grad_products, grad_lengths, grad_temperature


def _inverse_lengths(squared_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return one over the lengths of queries (h, d, B, 1) and of keys (h, 1, B, d)."""
    q_inverse, k_inverse = squared_lengths.clamp_min(MIN_SQUARED_LENGTH).rsqrt().chunk(2, dim=-1)
    return q_inverse.transpose(1, 2)[..., None], k_inverse[:, None]
