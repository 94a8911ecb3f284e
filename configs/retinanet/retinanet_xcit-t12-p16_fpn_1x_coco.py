"""RetinaNet on XCiT-T12/16, 1x on COCO.

Paper: none; XCiT is https://arxiv.org/abs/2106.09681, whose authors published no RetinaNet.
    The schedule is that of Twins (https://arxiv.org/abs/2104.13840, section 4.3), the drop path
    that of XCiT's Mask R-CNN.
Command: tools/dist_train.sh configs/retinanet/retinanet_xcit-t12-p16_fpn_1x_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from the authors' ImageNet-1k weights, xcit_tiny_12_p16.dist_in1k_384, as the
    example in their README does; downloaded at the first start.
Status: untested
No number is reported for this model. FPN and head use all four maps, from stride 4 on: else
    the three layers that make the first map (pyramid.fpn1) would get no gradient.
"""

_base_ = [
    '../_base_/models/retinanet_xcit_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmvit_backbones.Pretrained', checkpoint='xcit_tiny_12_p16.dist_in1k_384'
        ),
    ),
)
