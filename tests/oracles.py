"""Other packages' XCiT as references: their weights under our names, renamed by hand.

The package's own converters are tested elsewhere; a mistake in them must not hide here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

NECK_KEYS = ('cls_token', 'cls_attn_blocks.', 'norm.', 'patch_norm.')


def split_neck(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split weights into those of XCiT and those of ClassAttentionPooling."""
    neck = {key: value for key, value in weights.items() if key.startswith(NECK_KEYS)}
    return {key: value for key, value in weights.items() if key not in neck}, neck


def xcit_from_timm(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of XCiT and of ClassAttentionPooling; the head is left out."""
    renamed = {key: value for key, value in weights.items() if not key.startswith('head.')}
    for key in [key for key in renamed if re.search(r'cls_attn_blocks\.\d+\.attn\.q\.', key)]:
        thirds = [renamed.pop(key.replace('.q.', f'.{part}.')) for part in 'qkv']
        renamed[key.replace('.q.', '.qkv.')] = torch.cat(thirds)
    return split_neck(renamed)


def xcit_from_vit_pytorch(
    weights: Mapping[str, Tensor], patch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of XCiT and of ClassAttentionPooling, without the logits'."""

    def channels_first(value: Tensor) -> Tensor:
        """From pixels of (p1 p2 c) to (c, p1, p2) in the last dimension."""
        pixels = value.unflatten(-1, (patch_size, patch_size, -1))
        return pixels.movedim(-1, -3)

    names = {
        r'to_patch_embedding\.2\.': 'patch_embed.proj.',
        r'to_patch_embedding\.3\.': 'patch_embed.norm.',
        r'xcit_transformer\.layers\.(\d+)\.0\.scale': r'blocks.\1.gamma1',
        r'xcit_transformer\.layers\.(\d+)\.0\.fn\.norm': r'blocks.\1.norm1',
        r'xcit_transformer\.layers\.(\d+)\.0\.fn\.to_qkv': r'blocks.\1.attn.qkv',
        r'xcit_transformer\.layers\.(\d+)\.0\.fn\.temperature': r'blocks.\1.attn.temperature',
        r'xcit_transformer\.layers\.(\d+)\.0\.fn\.to_out\.0': r'blocks.\1.attn.proj',
        r'xcit_transformer\.layers\.(\d+)\.1\.scale': r'blocks.\1.gamma3',
        r'xcit_transformer\.layers\.(\d+)\.1\.fn\.net\.0': r'blocks.\1.norm3',
        r'xcit_transformer\.layers\.(\d+)\.1\.fn\.net\.2': r'blocks.\1.local_mp.conv1',
        r'xcit_transformer\.layers\.(\d+)\.1\.fn\.net\.3': r'blocks.\1.local_mp.bn',
        r'xcit_transformer\.layers\.(\d+)\.1\.fn\.net\.5': r'blocks.\1.local_mp.conv2',
        r'xcit_transformer\.layers\.(\d+)\.2\.scale': r'blocks.\1.gamma2',
        r'xcit_transformer\.layers\.(\d+)\.2\.fn\.net\.0': r'blocks.\1.norm2',
        r'xcit_transformer\.layers\.(\d+)\.2\.fn\.net\.1': r'blocks.\1.mlp.fc1',
        r'xcit_transformer\.layers\.(\d+)\.2\.fn\.net\.4': r'blocks.\1.mlp.fc2',
        r'final_norm\.': 'patch_norm.',
        r'cls_transformer\.layers\.(\d+)\.0\.scale': r'cls_attn_blocks.\1.gamma1',
        r'cls_transformer\.layers\.(\d+)\.0\.fn\.norm': r'cls_attn_blocks.\1.norm1',
        r'cls_transformer\.layers\.(\d+)\.0\.fn\.to_q\.': r'cls_attn_blocks.\1.attn.q.',
        r'cls_transformer\.layers\.(\d+)\.0\.fn\.to_kv\.': r'cls_attn_blocks.\1.attn.kv.',
        r'cls_transformer\.layers\.(\d+)\.0\.fn\.to_out\.0': r'cls_attn_blocks.\1.attn.proj',
        r'cls_transformer\.layers\.(\d+)\.1\.scale': r'cls_attn_blocks.\1.gamma2',
        r'cls_transformer\.layers\.(\d+)\.1\.fn\.net\.0': r'cls_attn_blocks.\1.norm2',
        r'cls_transformer\.layers\.(\d+)\.1\.fn\.net\.1': r'cls_attn_blocks.\1.mlp.fc1',
        r'cls_transformer\.layers\.(\d+)\.1\.fn\.net\.4': r'cls_attn_blocks.\1.mlp.fc2',
        r'mlp_head\.0\.': 'norm.',
    }
    renamed = {}
    for key, value in weights.items():
        for pattern, name in names.items():
            if re.match(pattern, key):
                renamed[re.sub(pattern, name, key)] = value
    for key in [key for key in renamed if '.attn.q.' in key]:
        parts = [renamed.pop(key), renamed.pop(key.replace('.q.', '.kv.'))]
        renamed[key.replace('.q.', '.qkv.')] = torch.cat(parts)
    for key in [key for key in renamed if key.endswith('temperature')]:
        renamed[key] = renamed[key].exp()
    for name in ('weight', 'bias'):
        flat = channels_first(weights[f'to_patch_embedding.1.{name}']).flatten(-3)
        renamed[f'patch_embed.pre_norm.{name}'] = flat
    renamed['patch_embed.proj.weight'] = channels_first(renamed['patch_embed.proj.weight'])
    side = int(weights['pos_embedding'].shape[1] ** 0.5)
    renamed['pos_embed.table'] = weights['pos_embedding'].unflatten(1, (side, side))
    renamed['cls_token'] = weights['cls_token'].view(1, 1, -1)
    return split_neck(renamed)
