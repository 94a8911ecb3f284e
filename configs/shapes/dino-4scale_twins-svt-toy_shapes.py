"""DINO-DETR on a toy Twins-SVT, on the synthetic shapes: minutes on a CPU.

Paper: none, the sizes are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/dino-4scale_twins-svt-toy_shapes.py
Batch: 1 GPU x 4 images; 4 epochs.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-toy.py',
    '../_base_/models/dino-4scale.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_detection.py',
    '../_base_/det_runtime.py',
]

# Few queries, layers and channels.
width = dict(embed_dims=64)
layer = dict(
    self_attn_cfg=width, cross_attn_cfg=width, ffn_cfg=dict(width, feedforward_channels=256)
)
model = dict(
    num_queries=30,
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3)),
    neck=dict(
        in_channels=_base_.channels[1:],
        out_channels=64,
        norm_cfg=dict(num_groups=8),
    ),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(self_attn_cfg=width, ffn_cfg=layer['ffn_cfg']),
    ),
    decoder=dict(num_layers=3, layer_cfg=layer),
    positional_encoding=dict(num_feats=32),
    bbox_head=dict(num_classes=4, embed_dims=64),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=30)),
    test_cfg=dict(max_per_img=30),
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
