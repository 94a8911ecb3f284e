"""Twins-SVT-S on ImageNet-1k, fine-tuned at 384 x 384.

Paper: none, the settings are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Command: tools/dist_train.sh configs/imagenet/twins-svt-small_8xb64_in1k-384px.py 8
Batch: 8 GPUs x 64 images = 512; 30 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this resolution.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_384_full-crop.py',
    '../_base_/schedules/imagenet_finetune_30e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_small.in1k'),
    backbone=dict(
        _base_.backbone,
        out_indices=(3,),
        out_norm=False,
        drop_path_rate=0.2,
        init_cfg=None,
    ),
    neck=dict(type='mmvit_backbones.NormAveragePooling', in_channels=_base_.channels[-1]),
    head=dict(in_channels=_base_.channels[-1]),
)
# As in the training at 224, each image comes once an epoch.
train_dataloader = dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
