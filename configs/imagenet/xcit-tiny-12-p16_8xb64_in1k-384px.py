"""XCiT-T12/16 on ImageNet-1k at 384 x 384: fine-tuning, and the test of the authors' weights.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/xcit-tiny-12-p16_8xb64_in1k-384px.py 8
Batch: 8 GPUs x 64 images = 512; 30 epochs.
Weights: starts from xcit_tiny_12_p16.in1k, downloaded at the first start.
Status: untested
Top-1 80.9 on validation for the authors' weights distilled at 384 x 384, reported by their README.
    Their settings for training at 384 are not published: the schedule here is ours.
"""

_base_ = [
    '../_base_/backbones/xcit-t12-p16.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_384_full-crop.py',
    '../_base_/schedules/imagenet_finetune_30e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='xcit_tiny_12_p16.in1k'),
    backbone=dict(
        _base_.backbone,
        out_indices=(_base_.depth - 1,),
        pyramid=False,
        norm_cfg=dict(type='BN'),
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    neck=dict(type='mmvit_backbones.ClassAttentionPooling', arch=_base_.backbone.arch),
    head=dict(in_channels=_base_.channels[-1]),
)
