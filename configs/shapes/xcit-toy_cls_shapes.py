"""Classifier on a toy XCiT, on the synthetic shapes: a minute or two on a CPU.

Paper: none, the sizes are ours; XCiT is https://arxiv.org/abs/2106.09681.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/xcit-toy_cls_shapes.py
Batch: 1 GPU x 16 images; 16 epochs.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/xcit-toy-classifier.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/shapes_classification.py',
    '../_base_/cls_runtime.py',
    '../_base_/schedules/shapes_classification.py',
]

model = dict(
    backbone=dict(_base_.backbone, out_indices=(_base_.depth - 1,), pyramid=False),
    neck=dict(type='mmvit_backbones.ClassAttentionPooling', arch=_base_.backbone.arch),
    head=dict(num_classes=4, in_channels=_base_.channels[-1], cal_acc=True),
    train_cfg=None,
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
