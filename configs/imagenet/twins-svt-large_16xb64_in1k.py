"""Twins-SVT-L on ImageNet-1k at 224 x 224, as in the Twins paper (section 4.1).

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/twins-svt-large_16xb64_in1k.py 16
Batch: 16 GPUs x 64 images = 1024; 300 epochs.
Weights: none, from scratch.
Status: untested
Top-1 83.7 on validation, reported by the paper.
"""

_base_ = [
    '../_base_/backbones/twins-svt-l.py',
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
        drop_path_rate=0.5,
        init_cfg=None,
    ),
    neck=dict(type='mmvit_backbones.NormAveragePooling', in_channels=_base_.channels[-1]),
    head=dict(in_channels=_base_.channels[-1]),
)
train_dataloader = dict(batch_size=64)
