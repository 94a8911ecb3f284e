"""Mask R-CNN on XCiT-S12/16, 3x on COCO with varied sizes and crops.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Mask R-CNN on COCO.
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_xcit-s12-p16_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from xcit_small_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
box AP 45.3, mask AP 40.8 on val2017, reported by the authors' README.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.05),
    neck=dict(in_channels=_base_.channels),
)

# No weight decay for layer norms. Batch norms, named otherwise, keep it as in the authors' code.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}))
