"""Semantic FPN on XCiT-S24/8, 80k iterations on ADE20K at 512 x 512.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Semantic FPN on ADE20K.
Command: tools/dist_train.sh configs/sem_fpn/xcit-s24-p8_fpn_fpnhead_8xb2-80k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 80,000 iterations.
Weights: starts from xcit_small_24_p8.dist_in1k_384, downloaded at the first start.
Status: untested
mIoU 47.1 on validation, reported by the authors' README.
"""

_base_ = [
    '../_base_/backbones/xcit-s24-p8.py',
    '../_base_/models/sem-fpn.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/seg_runtime.py',
]

# The FPN is as wide as the backbone, as in the authors' code.
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.channels, out_channels=_base_.channels[0]),
    decode_head=dict(in_channels=_base_.channels),
)

# No weight decay for layer norms. Batch norms, named otherwise, keep it as in the authors' code.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}))
