"""Semantic FPN on Twins-SVT-B, 80k iterations on ADE20K at 512 x 512.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 2 (Semantic FPN).
Command: tools/dist_train.sh configs/sem_fpn/twins_svt-b_fpn_fpnhead_8xb4-80k_ade20k-512x512.py 8
Batch: 8 GPUs x 4 images = 32; 80,000 iterations.
Weights: starts from the authors' ImageNet-1k weights, twins_svt_base.in1k; downloaded at the
    first start.
Status: untested
mIoU 45.3 on validation, reported by the paper.
"""

_base_ = ['./twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py']

model = dict(
    backbone=dict(
        arch='base',
        init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_base.in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
