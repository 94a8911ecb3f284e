"""XCiT-S12/16 on ImageNet-1k at 224 x 224, as in the code of the XCiT authors.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/xcit-small-12-p16_8xb128_in1k.py 8
Batch: 8 GPUs x 128 images = 1024; 400 epochs.
Weights: none, from scratch.
Status: untested
Top-1 82.0 on validation, and 83.3 for the distilled weights, which this config tests too; both
    reported by the authors' README.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_224_full-crop.py',
    '../_base_/schedules/imagenet_400e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    backbone=dict(
        _base_.backbone,
        out_indices=(_base_.depth - 1,),
        pyramid=False,
        norm_cfg=dict(type='BN'),
        drop_path_rate=0.05,
        init_cfg=None,
    ),
    neck=dict(type='mmvit_backbones.ClassAttentionPooling', arch=_base_.backbone.arch),
    head=dict(in_channels=_base_.channels[-1]),
)
