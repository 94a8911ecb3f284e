"""Semantic FPN on Twins-SVT-L, 80k iterations on ADE20K at 512 x 512.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 2 (Semantic FPN).
Command: tools/dist_train.sh configs/sem_fpn/twins_svt-l_fpn_fpnhead_8xb4-80k_ade20k-512x512.py 8
Batch: 8 GPUs x 4 images = 32; 80,000 iterations.
Weights: starts from twins_svt_large.in1k, downloaded at the first start.
Status: untested
mIoU 46.7 on validation, reported by the paper.
"""

_base_ = [
    '../_base_/backbones/twins-svt-l.py',
    '../_base_/models/sem-fpn.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.channels),
)

# The values of the authors' code. The paper says weight decay 5e-4, 16 images and, for L, drop path
# 0.4.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-6, power=0.9, begin=0, end=80000, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=32)
