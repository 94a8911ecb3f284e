"""What the descriptions of several networks say alike: OpenMMLab's MLPs, and who hosts files."""

from __future__ import annotations

from mmvit_backbones.checkpoints.download import Address
from mmvit_backbones.checkpoints.rules import Rule

MMCV_FFN: tuple[Rule, ...] = (
    ('ffn.layers.0.0.*', 'mlp.fc1.*'),
    ('ffn.layers.1.*', 'mlp.fc2.*'),
)


def rows(table: str) -> list[list[str]]:
    """Split a table into the words of its lines."""
    return [line.split() for line in table.strip().splitlines()]


def timm_hub(name: str) -> str:
    """Return the address of a model of timm's hub."""
    return f'https://huggingface.co/timm/{name}/resolve/main/model.safetensors'


def mmpretrain_files(path: str) -> tuple[str, str]:
    """Return the addresses of a file of mmpretrain, at OpenMMLab and at its successor."""
    hosts = ('https://download.openmmlab.com', 'https://mmassets.onedl.ai')
    original, successor = (f'{host}/mmclassification/v0/{path}' for host in hosts)
    return original, successor


def drive(key: str) -> Address:
    """Return the page of a file at Google Drive."""
    return Address(f'https://drive.google.com/file/d/{key}/view', by_hand=True)
