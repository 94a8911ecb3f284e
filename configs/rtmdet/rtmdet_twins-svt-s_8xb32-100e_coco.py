"""RTMDet-L on Twins-SVT-S, 100 epochs on COCO at 640 x 640.

Paper: none with this backbone (Twins-SVT is https://arxiv.org/abs/2104.13840); the head is RTMDet,
    https://arxiv.org/abs/2212.07784, with the values of mmdet for ConvNeXt-B
    (rtmdet_l_convnext_b_4xb32-100e), the decay by layer is ours.
Command: tools/dist_train.sh configs/rtmdet/rtmdet_twins-svt-s_8xb32-100e_coco.py 8
Batch: 8 GPUs x 32 images = 256; 100 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/rtmdet-l.py',
    '../_base_/schedules/rtmdet_100e.py',
]

model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels[1:]),
)

# The first layer learns at 0.9 ** 19 = 0.14 of the rate of the head.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
