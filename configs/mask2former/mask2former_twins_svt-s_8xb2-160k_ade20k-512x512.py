"""Mask2Former on Twins-SVT-S, 160k iterations on ADE20K at 512 x 512.

Paper: none with this backbone (Twins-SVT is https://arxiv.org/abs/2104.13840); the head is
    Mask2Former, https://arxiv.org/abs/2112.01527, with the values of mmseg for Swin-T, but for the
    decay by layer.
Command: tools/dist_train.sh configs/mask2former/mask2former_twins_svt-s_8xb2-160k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 160,000 iterations.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/mask2former_semantic.py',
    '../_base_/datasets/ade20k_512x512_shortest-edge.py',
    '../_base_/schedules/mask2former_ade20k_160k.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    decode_head=dict(in_channels=_base_.channels),
)

# The first layer learns at 0.9 ** 19 = 0.14 of the rate of the head.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
