"""Twins-SVT and XCiT as backbones for mmdetection, mmsegmentation, mmpretrain and plain PyTorch."""

try:
    from mmvit_backbones.backbones import TwinsSVT, XCiT
except ModuleNotFoundError as error:
    if error.name not in ('mmengine', 'mmcv'):
        raise
    raise ImportError(
        f'mmvit_backbones needs {error.name}, which comes under two names: '
        "pip install 'mmvit-backbones[onedl]' or 'mmvit-backbones[openmmlab]', see docs/install.md"
    ) from error
from mmvit_backbones.checkpoints import convert_state_dict, list_pretrained, load_checkpoint
from mmvit_backbones.checkpoints.mmengine_loader import register_safe_loaders
from mmvit_backbones.fuse import fuse
from mmvit_backbones.kernels.switch import use_environment
from mmvit_backbones.models import create_model, list_models
from mmvit_backbones.version import __version__

register_safe_loaders()

__all__ = [
    'TwinsSVT',
    'XCiT',
    '__version__',
    'convert_state_dict',
    'create_model',
    'fuse',
    'list_models',
    'list_pretrained',
    'load_checkpoint',
]

use_environment()
