"""Cascade Mask R-CNN on XCiT-S12/16, 3x on COCO with varied sizes and crops.

Paper: none with this backbone (XCiT is https://arxiv.org/abs/2106.09681); head and values are
    mmdet's for ConvNeXt-T (cascade-mask-rcnn_convnext-t), the decay by layer is ours.
Command: tools/dist_train.sh configs/cascade_mask_rcnn/cascade-mask-rcnn_xcit-s12-p16_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from xcit_small_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/cascade-mask-rcnn_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.05),
    neck=dict(in_channels=_base_.channels),
)

# The first layer learns at 0.85 ** 13 = 0.12 of the rate of the head.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    constructor='mmvit_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.85),
)
