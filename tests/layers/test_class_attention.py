"""Class attention against heads and the authors' token updates written out."""

from __future__ import annotations

import pytest
import torch

from mmvit_backbones.layers.class_attention import ClassAttention, ClassAttentionBlock
from tests.utils import max_error, randomize


@pytest.mark.parametrize(('head_dims', 'qkv_bias'), [(4, True), (6, False)])
@torch.no_grad()
def test_equals_heads_written_out(head_dims: int, qkv_bias: bool) -> None:
    attn = randomize(ClassAttention(12, 3, head_dims, qkv_bias)).double()
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    q = attn.qkv(tokens[:, :1]).chunk(3, dim=-1)[0]
    _, k, v = attn.qkv(tokens).chunk(3, dim=-1)
    outputs = []
    for head in range(3):
        channels = slice(head * head_dims, (head + 1) * head_dims)
        logits = q[..., channels] @ k[..., channels].transpose(1, 2) / head_dims**0.5
        outputs.append(logits.softmax(dim=-1) @ v[..., channels])
    expected = attn.proj(torch.cat(outputs, dim=-1))
    assert max_error(attn(tokens), expected) <= 1e-12


@pytest.mark.parametrize('tokens_norm', [True, False])
@pytest.mark.parametrize('update_patches', [True, False])
def test_patches_pass_through_the_authors_block_only(
    tokens_norm: bool, update_patches: bool
) -> None:
    block = ClassAttentionBlock(
        12,
        3,
        4,
        24,
        layer_scale=1.0,
        norm_eps=1e-6,
        qkv_bias=True,
        update_patches=update_patches,
        tokens_norm=tokens_norm,
    )
    randomize(block).double()
    cls_token = torch.randn(2, 1, 12, dtype=torch.float64)
    patches = torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        _, out = block(cls_token, patches)
        expected = patches
        if update_patches:
            expected = patches + block.gamma1 * block.norm1(patches)
            expected = 2 * (block.norm2(expected) if tokens_norm else expected)
    assert max_error(out, expected) <= 1e-12
