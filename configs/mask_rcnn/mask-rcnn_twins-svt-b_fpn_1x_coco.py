"""Mask R-CNN on Twins-SVT-B, 1x on COCO.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 4 (Mask R-CNN, 1x).
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_twins-svt-b_fpn_1x_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from twins_svt_base.in1k, downloaded at the first start.
Status: untested
box AP 45.2, mask AP 41.5 on val2017, reported by the paper, there with zeros in padded windows
    (window_padding='zero'); here padding takes no part in attention.
"""

_base_ = [
    '../_base_/backbones/twins-svt-b.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels),
)

optim_wrapper = dict(optimizer=dict(lr=2e-4))
