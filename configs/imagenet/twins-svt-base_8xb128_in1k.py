"""Twins-SVT-B on ImageNet-1k at 224 x 224, as in the Twins paper (section 4.1).

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/twins-svt-base_8xb128_in1k.py 8
Batch: 8 GPUs x 128 images = 1024; 300 epochs.
Weights: none, from scratch.
Status: untested
Top-1 83.2 on validation, reported by the paper.
"""

_base_ = [
    '../_base_/backbones/twins-svt-b.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    backbone=dict(
        _base_.backbone,
        out_indices=(3,),
        out_norm=False,
        drop_path_rate=0.3,
        init_cfg=None,
    ),
    neck=dict(type='mmvit_backbones.NormAveragePooling', in_channels=_base_.channels[-1]),
    head=dict(in_channels=_base_.channels[-1]),
)
