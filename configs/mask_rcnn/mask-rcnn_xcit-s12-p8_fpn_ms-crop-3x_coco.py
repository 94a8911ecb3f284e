"""Mask R-CNN on XCiT-S12/8, 3x on COCO with varied sizes and crops.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Mask R-CNN on COCO.
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_xcit-s12-p8_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from the authors' ImageNet-1k weights, xcit_small_12_p8.dist_in1k_384, as the
    example in their README does; downloaded at the first start.
Status: untested
box AP 47.0, mask AP 42.3 on val2017, reported by the authors' README.
"""

_base_ = ['./mask-rcnn_xcit-t12-p16_fpn_ms-crop-3x_coco.py']

model = dict(
    backbone=dict(
        arch='small-12',
        patch_size=8,
        drop_path_rate=0.05,
        init_cfg=dict(
            type='mmvit_backbones.Pretrained', checkpoint='xcit_small_12_p8.dist_in1k_384'
        ),
    ),
    neck=dict(in_channels=[384, 384, 384, 384]),
)
