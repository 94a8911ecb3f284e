"""Twins-SVT and XCiT as backbones for mmdetection, mmsegmentation, mmpretrain and plain PyTorch."""

from mmvit_backbones.backbones import TwinsSVT, XCiT
from mmvit_backbones.checkpoints import convert_state_dict, load_checkpoint
from mmvit_backbones.factory import create_model, list_models
from mmvit_backbones.fuse import fuse
from mmvit_backbones.version import __version__

__all__ = [
    'TwinsSVT',
    'XCiT',
    '__version__',
    'convert_state_dict',
    'create_model',
    'fuse',
    'list_models',
    'load_checkpoint',
]
