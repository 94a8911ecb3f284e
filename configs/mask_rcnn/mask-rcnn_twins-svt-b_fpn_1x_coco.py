"""Mask R-CNN on Twins-SVT-B, 1x on COCO.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 4 (Mask R-CNN, 1x).
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_twins-svt-b_fpn_1x_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from the authors' ImageNet-1k weights, twins_svt_base.in1k; downloaded at the
    first start.
Status: untested
box AP 45.2, mask AP 41.5 on val2017, reported by the paper, there with zeros in padded windows
    (window_padding='zero'); here padding takes no part in attention.
"""

_base_ = ['./mask-rcnn_twins-svt-s_fpn_1x_coco.py']

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_base.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
