"""RetinaNet for rotated boxes on Twins-SVT-S, 1x on DOTA.

Paper: none with this backbone (Twins-SVT is https://arxiv.org/abs/2104.13840); the head is
    mmrotate's (rotated-retinanet-rbox-le90_r50_fpn_1x_dota), the optimizer that of Twins'
    RetinaNet.
Command: bash dist_train.sh configs/rotated_retinanet/rotated-retinanet_twins-svt-s_fpn_1x_dota.py 8, with the dist_train.sh of mmrotate's tools
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/rotated-retinanet_fpn.py',
    '../_base_/datasets/dota.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/rot_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels[1:]),
)
