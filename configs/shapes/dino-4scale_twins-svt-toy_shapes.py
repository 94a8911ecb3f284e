"""DINO-DETR on a toy Twins-SVT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/dino-4scale_twins-svt-toy_shapes.py
Batch: 1 GPU x 4 images; 5 epochs.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-toy.py',
    '../_base_/models/dino-4scale_toy.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_detection.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=_base_.channels[1:]),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
