"""What stands between a backbone and a head."""

from mmvit_backbones.necks.class_attention import ClassAttentionPooling
from mmvit_backbones.necks.norm_pooling import NormAveragePooling
from mmvit_backbones.necks.pyramid import DeconvPoolPyramid

__all__ = ['ClassAttentionPooling', 'DeconvPoolPyramid', 'NormAveragePooling']
