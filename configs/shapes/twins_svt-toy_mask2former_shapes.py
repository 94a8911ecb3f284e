"""Mask2Former on a toy Twins-SVT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/twins_svt-toy_mask2former_shapes.py
Batch: 1 GPU x 4 images; 600 iterations.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-toy.py',
    '../_base_/models/mask2former_semantic.py',
    '../_base_/datasets/shapes_segmentation.py',
    '../_base_/schedules/shapes_segmentation.py',
    '../_base_/seg_runtime.py',
]

# Few queries, layers, channels and points.
width = dict(embed_dims=64)
layer = dict(self_attn_cfg=width, ffn_cfg=dict(width, feedforward_channels=256))
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=_base_.backbone,
    decode_head=dict(
        in_channels=_base_.channels,
        num_classes=5,
        feat_channels=64,
        out_channels=64,
        num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(num_layers=1, layer_cfg=layer),
            positional_encoding=dict(num_feats=32),
        ),
        positional_encoding=dict(num_feats=32),
        transformer_decoder=dict(num_layers=3, layer_cfg=dict(layer, cross_attn_cfg=width)),
        loss_cls=dict(class_weight=[1.0] * 5 + [0.1]),
        train_cfg=dict(num_points=2048),
    ),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=200, max_keep_ckpts=2))
