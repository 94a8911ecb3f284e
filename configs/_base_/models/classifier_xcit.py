# Classifier on XCiT-S12/16 with mixup, CutMix and label smoothing as in DeiT
# (https://arxiv.org/abs/2012.12877, Table 9): each batch gets one of the two, with equal odds.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvit_backbones.XCiT',
        arch='small-12',
        patch_size=16,
        out_indices=(11,),
        pyramid=False,
        drop_path_rate=0.1,
    ),
    neck=dict(
        type='mmvit_backbones.ClassAttentionPooling',
        in_channels=384,
        num_heads=8,
        layer_scale=1.0,
        tokens_norm=True,
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
