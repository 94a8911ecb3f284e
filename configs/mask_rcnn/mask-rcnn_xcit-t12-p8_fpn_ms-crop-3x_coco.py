"""Mask R-CNN on XCiT-T12/8, 3x on COCO with varied sizes and crops.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Mask R-CNN on COCO.
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_xcit-t12-p8_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from xcit_tiny_12_p8.dist_in1k_384, downloaded at the first start.
Status: untested
box AP 44.5, mask AP 40.3 on val2017, reported by the authors' README.
"""

_base_ = [
    '../_base_/backbones/xcit-t12-p8.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.0),
    neck=dict(in_channels=_base_.channels),
)

# No weight decay for layer norms. Batch norms, named otherwise, keep it as in the authors' code.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}))
