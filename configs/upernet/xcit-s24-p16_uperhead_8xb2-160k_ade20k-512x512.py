"""UperNet on XCiT-S24/16, 160k iterations on ADE20K at 512 x 512.

Paper: XCiT, https://arxiv.org/abs/2106.09681, UperNet on ADE20K.
Command: tools/dist_train.sh configs/upernet/xcit-s24-p16_uperhead_8xb2-160k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 160,000 iterations.
Weights: starts from the authors' ImageNet-1k weights, xcit_small_24_p16.dist_in1k_384, as the
    example in their README does; downloaded at the first start.
Status: untested
mIoU 46.9 on validation, reported by the authors' README.
"""

_base_ = ['./xcit-t12-p16_uperhead_8xb2-160k_ade20k-512x512.py']

model = dict(
    backbone=dict(
        arch='small-24',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='mmvit_backbones.Pretrained', checkpoint='xcit_small_24_p16.dist_in1k_384'
        ),
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
