"""Reading, converting and strictly loading weights of every public naming."""

from mmvit_backbones.checkpoints.converting import convert_state_dict
from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.loading import LoadReport, load_checkpoint
from mmvit_backbones.checkpoints.pretrained import Pretrained

__all__ = [
    'CheckpointError',
    'LoadReport',
    'Pretrained',
    'convert_state_dict',
    'load_checkpoint',
]
