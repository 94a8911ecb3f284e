"""Mask R-CNN on XCiT-M24/16, 3x on COCO with varied sizes and crops.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Mask R-CNN on COCO.
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_xcit-m24-p16_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from xcit_medium_24_p16.dist_in1k_384, downloaded at the first start.
Status: untested
box AP 46.7, mask AP 42.0 on val2017, reported by the authors' README. The authors' file of this
    name sets patch_size to 8; here it is 16, as the name says.
"""

_base_ = [
    '../_base_/backbones/xcit-m24-p16.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.15),
    neck=dict(in_channels=_base_.channels),
)

# No weight decay for layer norms. Batch norms, named otherwise, keep it as in the authors' code.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}))
