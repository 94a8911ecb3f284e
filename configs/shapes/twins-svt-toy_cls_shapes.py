"""Classifier on a toy Twins-SVT, on the synthetic shapes: a minute or two on a CPU.

Paper: none, the sizes are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: tools/make_shapes.py data/shapes
Command: tools/train.py configs/shapes/twins-svt-toy_cls_shapes.py
Batch: 1 process x 16 images; 12 epochs x 50 iterations.
Weights: none, from scratch.
Status: untested
"""

_base_ = [
    '../_base_/models/classifier_twins-svt.py',
    '../_base_/datasets/shapes_classification.py',
    '../_base_/cls_runtime.py',
    '../_base_/schedules/shapes_classification.py',
]

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(32, 64, 128, 160),
            stages=('LG', 'LG', 'LG', 'LG'),
            num_heads=(1, 2, 4, 5),
            paper_init=False,  # too small for so narrow a network
        ),
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=160),
    head=dict(num_classes=4, in_channels=160, cal_acc=True),
    train_cfg=None,
)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=2, max_keep_ckpts=2))
