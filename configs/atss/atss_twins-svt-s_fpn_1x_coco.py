"""ATSS on Twins-SVT-S, 1x on COCO.

Paper: none with this backbone (Twins-SVT is https://arxiv.org/abs/2104.13840); the head is ATSS,
    https://arxiv.org/abs/1912.02424, as in mmdet, with its optimizer for Swin-T
    (retinanet_swin-t-p4-w7_fpn_1x).
Command: tools/dist_train.sh configs/atss/atss_twins-svt-s_fpn_1x_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/atss_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels[1:]),
)

# No weight decay for position encodings and norms.
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={'pos_block': dict(decay_mult=0.0), 'norm': dict(decay_mult=0.0)}
    ),
)
