"""RetinaNet on Twins-SVT-B, 1x on COCO.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 3 (RetinaNet, 1x).
Command: tools/dist_train.sh configs/retinanet/retinanet_twins-svt-b_fpn_1x_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from the authors' ImageNet-1k weights, twins_svt_base.in1k; downloaded at the
    first start.
Status: untested
box AP 45.3 on val2017, reported by the paper, there with zeros in padded windows
    (window_padding='zero'); here padding takes no part in attention.
"""

_base_ = ['./retinanet_twins-svt-s_fpn_1x_coco.py']

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_base.in1k'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
