"""Mask R-CNN on Twins-SVT-S, 3x on COCO with varied sizes and crops.

Paper: Twins, https://arxiv.org/abs/2104.13840, section 4.3 (Mask R-CNN, 3x).
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_twins-svt-s_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
box AP 46.8, mask AP 42.6 on val2017, reported by the paper, there with zeros in padded windows
    (window_padding='zero'); here padding takes no part in attention.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels),
)

# No weight decay for position encodings and norms.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_block': dict(decay_mult=0.0), 'norm': dict(decay_mult=0.0)}
    )
)
