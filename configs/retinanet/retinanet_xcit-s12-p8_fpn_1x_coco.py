"""RetinaNet on XCiT-S12/8, 1x on COCO.

Paper: none; XCiT is https://arxiv.org/abs/2106.09681, whose authors published no RetinaNet. The
    schedule is that of Twins (https://arxiv.org/abs/2104.13840, section 4.3), the drop path that of
    XCiT's Mask R-CNN.
Command: tools/dist_train.sh configs/retinanet/retinanet_xcit-s12-p8_fpn_1x_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from xcit_small_12_p8.dist_in1k_384, downloaded at the first start.
Status: untested
No number is reported for this model. FPN and head use all four maps, from stride 4 on: else the
    layers that make the first map (pyramid.fpn1) would get no gradient.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p8.py',
    '../_base_/models/retinanet_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/det_runtime.py',
]

# From stride 4 on, with anchors of the same sizes, 32 to 512 px.
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.05),
    neck=dict(in_channels=_base_.channels),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=8, strides=[4, 8, 16, 32, 64])),
)
