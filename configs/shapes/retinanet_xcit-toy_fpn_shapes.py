"""RetinaNet on a toy XCiT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; XCiT is https://arxiv.org/abs/2106.09681.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/retinanet_xcit-toy_fpn_shapes.py
Batch: 1 GPU x 4 images; 5 epochs.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/xcit-toy.py',
    '../_base_/models/retinanet_fpn.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_detection.py',
    '../_base_/det_runtime.py',
]

# The shapes are 16 to 64 px wide and about as high: the pyramid starts at stride 4, where anchors
# have 16 px, and all anchors are square. Group norms let neck and head learn from scratch.
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=_base_.backbone,
    neck=dict(
        in_channels=_base_.channels,
        out_channels=64,
        add_extra_convs=False,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        num_classes=4,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
