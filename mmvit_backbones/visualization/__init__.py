"""Pictures of what the networks see, with matplotlib alone. Each function returns a `Figure`."""

from mmvit_backbones.visualization.channel_attention import draw_channel_attention
from mmvit_backbones.visualization.class_attention import draw_class_attention
from mmvit_backbones.visualization.curves import draw_curves, read_scalars
from mmvit_backbones.visualization.grad_cam import draw_grad_cam
from mmvit_backbones.visualization.loading import Subject, load_subject
from mmvit_backbones.visualization.predictions import draw_predictions, predict
from mmvit_backbones.visualization.pyramid import draw_pyramid, pca_colours
from mmvit_backbones.visualization.receptive_fields import draw_receptive_field, receptive_field
from mmvit_backbones.visualization.sample import Sample, image_files, read_sample
from mmvit_backbones.visualization.token_attention import draw_token_attention

__all__ = [
    'Sample',
    'Subject',
    'draw_channel_attention',
    'draw_class_attention',
    'draw_curves',
    'draw_grad_cam',
    'draw_predictions',
    'draw_pyramid',
    'draw_receptive_field',
    'draw_token_attention',
    'image_files',
    'load_subject',
    'pca_colours',
    'predict',
    'read_sample',
    'read_scalars',
    'receptive_field',
]
