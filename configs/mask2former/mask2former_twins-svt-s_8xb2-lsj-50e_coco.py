"""Mask2Former on Twins-SVT-S, instances, 50 epochs on COCO.

Paper: none with this backbone (Twins-SVT is https://arxiv.org/abs/2104.13840); the head is
    Mask2Former, https://arxiv.org/abs/2112.01527, with the values of mmdet for Swin-T, but for the
    decay by layer.
Command: tools/dist_train.sh configs/mask2former/mask2former_twins-svt-s_8xb2-lsj-50e_coco.py 8
Batch: 8 GPUs x 2 images = 16; 368,750 iterations.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/mask2former_instance.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/mask2former_coco_50e.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    panoptic_head=dict(in_channels=_base_.channels),
)

# The first layer learns at 0.9 ** 19 = 0.14 of the rate of the head.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
