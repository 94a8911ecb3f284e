"""Mask R-CNN on Twins-SVT-L, 3x on COCO with varied sizes and crops.

Paper: Twins, https://arxiv.org/abs/2104.13840, section 4.3 (Mask R-CNN, 3x).
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_twins-svt-l_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from the authors' ImageNet-1k weights, twins_svt_large.in1k; downloaded at the
    first start.
Status: untested
No number is reported for this size, of which the authors have a config. There zeros take part in padded
    windows (window_padding='zero'); here padding takes no part in attention.
"""

_base_ = ['./mask-rcnn_twins-svt-s_fpn_ms-crop-3x_coco.py']

model = dict(
    backbone=dict(
        arch='large',
        init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_large.in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
