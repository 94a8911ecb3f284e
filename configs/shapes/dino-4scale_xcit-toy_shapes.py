"""DINO-DETR on a toy XCiT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; XCiT is https://arxiv.org/abs/2106.09681.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/dino-4scale_xcit-toy_shapes.py
Batch: 1 GPU x 4 images; 5 epochs.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/xcit-toy.py',
    '../_base_/models/dino-4scale_toy.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_detection.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, pyramid=False, out_indices=(3, 4, 5)),
    neck=[
        dict(
            type='mmvit_backbones.DeconvPoolPyramid',
            in_channels=_base_.channels[0],
            stride=_base_.backbone.patch_size,
            out_strides=(8, 16, 32),
            norm_cfg=_base_.backbone.norm_cfg,
        ),
        dict(_base_.model.neck, in_channels=_base_.channels[1:]),
    ],
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
