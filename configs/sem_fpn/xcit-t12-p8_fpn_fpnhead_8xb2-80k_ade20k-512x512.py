"""Semantic FPN on XCiT-T12/8, 80k iterations on ADE20K at 512 x 512.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Semantic FPN on ADE20K.
Command: tools/dist_train.sh configs/sem_fpn/xcit-t12-p8_fpn_fpnhead_8xb2-80k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 80,000 iterations.
Weights: starts from the authors' ImageNet-1k weights, xcit_tiny_12_p8.dist_in1k_384, as the
    example in their README does; downloaded at the first start.
Status: untested
mIoU 39.9 on validation, reported by the authors' README.
"""

_base_ = ['./xcit-t12-p16_fpn_fpnhead_8xb2-80k_ade20k-512x512.py']

model = dict(
    backbone=dict(
        patch_size=8,
        init_cfg=dict(
            type='mmvit_backbones.Pretrained', checkpoint='xcit_tiny_12_p8.dist_in1k_384'
        ),
    ),
)
