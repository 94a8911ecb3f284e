# Classifier with mixup, CutMix and label smoothing as in DeiT (https://arxiv.org/abs/2012.12877, Table
# 9): each batch gets one of the two, with equal odds. A leaf adds the backbone, its pooling neck and
# the channels of the last feature map.
model = dict(
    type='ImageClassifier',
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
