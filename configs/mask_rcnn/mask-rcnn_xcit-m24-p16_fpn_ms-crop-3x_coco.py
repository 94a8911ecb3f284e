"""Mask R-CNN on XCiT-M24/16, 3x on COCO with varied sizes and crops.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Mask R-CNN on COCO.
Command: tools/dist_train.sh configs/mask_rcnn/mask-rcnn_xcit-m24-p16_fpn_ms-crop-3x_coco.py 8 --amp
Batch: 8 GPUs x 2 images = 16; 36 epochs.
Weights: starts from the authors' ImageNet-1k weights, xcit_medium_24_p16.dist_in1k_384, as the
    example in their README does; downloaded at the first start.
Status: untested
box AP 46.7, mask AP 42.0 on val2017, reported by the authors' README.
    The authors' file of this name sets patch_size to 8; here it is 16, as the name says.
"""

_base_ = ['./mask-rcnn_xcit-t12-p16_fpn_ms-crop-3x_coco.py']

model = dict(
    backbone=dict(
        arch='medium-24',
        drop_path_rate=0.15,
        init_cfg=dict(
            type='mmvit_backbones.Pretrained', checkpoint='xcit_medium_24_p16.dist_in1k_384'
        ),
    ),
    neck=dict(in_channels=[512, 512, 512, 512]),
)
