"""UperNet on a toy Twins-SVT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/twins_svt-toy_uperhead_shapes.py
Batch: 1 GPU x 4 images; 800 iterations.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-toy.py',
    '../_base_/models/upernet.py',
    '../_base_/datasets/shapes_segmentation.py',
    '../_base_/schedules/shapes_segmentation_long.py',
    '../_base_/seg_runtime.py',
]

# Group norms: the pooling branch norms single pixels, which batch norm can't with one image.
norm_cfg = dict(type='GN', num_groups=8)
# Nine pixels in ten are background: a loss of pixels, and one of the IoU of each class.
losses = [
    dict(type='CrossEntropyLoss', loss_weight=1.0),
    dict(type='LovaszLoss', reduction='none', loss_weight=1.0),
]
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=_base_.backbone,
    decode_head=dict(
        in_channels=_base_.channels,
        channels=64,
        num_classes=5,
        norm_cfg=norm_cfg,
        loss_decode=losses,
    ),
    auxiliary_head=dict(
        in_channels=_base_.channels[2],
        channels=64,
        num_classes=5,
        norm_cfg=norm_cfg,
    ),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=200, max_keep_ckpts=2))
