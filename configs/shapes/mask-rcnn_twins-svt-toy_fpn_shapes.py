"""Mask R-CNN on a toy Twins-SVT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/mask-rcnn_twins-svt-toy_fpn_shapes.py
Batch: 1 GPU x 4 images; 5 epochs.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-toy.py',
    '../_base_/models/mask-rcnn_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/shapes_detection.py',
    '../_base_/det_runtime.py',
]

# The shapes are 16 to 64 px wide: anchors have 16 px at stride 4, and RoIs of 16 px belong there.
# Group norms let neck and head learn from scratch.
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels, out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=16),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=4),
        mask_roi_extractor=dict(out_channels=64, finest_scale=16),
        mask_head=dict(
            num_convs=2, in_channels=64, conv_out_channels=64, num_classes=4, norm_cfg=norm_cfg
        ),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=200)),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
