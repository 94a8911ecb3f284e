"""Classifier on a toy XCiT, on the synthetic shapes: a minute or two on a CPU.

Paper: none, the sizes are ours; XCiT is https://arxiv.org/abs/2106.09681.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/xcit-toy_cls_shapes.py
Batch: 1 process x 16 images; 12 epochs x 50 iterations.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/models/classifier_xcit.py',
    '../_base_/datasets/shapes_classification.py',
    '../_base_/cls_runtime.py',
    '../_base_/schedules/shapes_classification.py',
]

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=4, num_heads=4, layer_scale=1.0),
        patch_size=8,
        out_indices=(3,),
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=128, num_heads=4, num_layers=1),
    head=dict(num_classes=4, in_channels=128, cal_acc=True),
    train_cfg=None,
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
