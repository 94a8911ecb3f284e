"""XCiT-S12/16 on ImageNet-1k at 224 x 224, with a teacher (hard distillation).

Paper: XCiT, https://arxiv.org/abs/2106.09681, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/xcit-small-12-p16_8xb128_in1k-distilled.py 8
Batch: 8 GPUs x 128 images = 1024; 400 epochs.
Weights: none for the student; the teacher's are those of DeiT's authors, downloaded at the first
    start, others by --cfg-options model.teacher_checkpoint=<file or address>.
Status: untested
Top-1 83.3 on validation, reported by the authors' README. Its checkpoints are tested with
    xcit-small-12-p16_8xb128_in1k.py, which needs no teacher.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_224_full-crop.py',
    '../_base_/schedules/imagenet_400e.py',
    '../_base_/cls_runtime.py',
]

# Any other config of this folder and any classifier of mmpretrain can take these places.
model = dict(
    _delete_=True,
    type='mmvit_backbones.HardDistillationClassifier',
    student=dict(
        _base_.model,
        backbone=dict(
            _base_.backbone,
            out_indices=(_base_.depth - 1,),
            pyramid=False,
            norm_cfg=dict(type='BN'),
            drop_path_rate=0.05,
            init_cfg=None,
        ),
        neck=dict(type='mmvit_backbones.ClassAttentionPooling', arch=_base_.backbone.arch),
        head=dict(_base_.model.head, in_channels=_base_.channels[-1]),
    ),
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth',
    alpha=0.5,
)
