"""UperNet on Twins-SVT-B, 160k iterations on ADE20K at 512 x 512.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 2 (UperNet).
Command: tools/dist_train.sh configs/upernet/twins_svt-b_uperhead_8xb2-160k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 160,000 iterations.
Weights: starts from the authors' ImageNet-1k weights, twins_svt_base.in1k; downloaded at the
    first start.
Status: untested
mIoU 47.7 single-scale, 48.9 multi-scale (--tta) on validation, reported by the paper.
"""

_base_ = ['./twins_svt-s_uperhead_8xb2-160k_ade20k-512x512.py']

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_base.in1k'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
