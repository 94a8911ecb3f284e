# Classifier on Twins-SVT-S with mixup, CutMix and label smoothing as in DeiT
# (https://arxiv.org/abs/2012.12877, Table 9): each batch gets one of the two, with equal odds.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvit_backbones.TwinsSVT',
        arch='small',
        out_indices=(3,),
        out_norm=False,
        drop_path_rate=0.2,
    ),
    neck=dict(type='mmvit_backbones.NormAveragePooling', in_channels=512),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
