"""Reading, converting and strictly loading weights of every public naming."""

from mmvit_backbones.checkpoints.converting import convert_state_dict
from mmvit_backbones.checkpoints.description import Network
from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.loading import LoadReport, load_checkpoint
from mmvit_backbones.checkpoints.networks import register
from mmvit_backbones.checkpoints.pretrained import Pretrained
from mmvit_backbones.checkpoints.zoo import list_pretrained

__all__ = [
    'CheckpointError',
    'LoadReport',
    'Network',
    'Pretrained',
    'convert_state_dict',
    'list_pretrained',
    'load_checkpoint',
    'register',
]
