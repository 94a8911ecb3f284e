"""XCiT-S12/16 fine-tuned on your own classes, one folder of images for each.

Paper: none, the settings are ours; XCiT is https://arxiv.org/abs/2106.09681.
Data: data/folders/train/<class>/*.jpg and data/folders/val/<class>/*.jpg, 10 classes.
Command: tools/train.py configs/imagenet/xcit-small-12-p16_1xb64_folders.py
Batch: 1 GPU x 64 images; 30 epochs.
Weights: starts from xcit_small_12_p16.in1k; downloaded at the first start. The head, of another
    size, starts anew; the log says so.
Status: untested
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_224_full-crop.py',
    '../_base_/cls_runtime.py',
]

# For another number of classes change it here.
num_classes = 10
data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(
        _base_.backbone,
        out_indices=(_base_.depth - 1,),
        pyramid=False,
        norm_cfg=dict(type='BN'),
        drop_path_rate=0.1,
        init_cfg=None,
    ),
    neck=dict(type='mmvit_backbones.ClassAttentionPooling', arch=_base_.backbone.arch),
    head=dict(num_classes=num_classes, in_channels=_base_.channels[-1]),
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='xcit_small_12_p16.in1k'),
)

train_dataloader = dict(
    batch_size=64,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/folders',
        data_prefix='train',
        pipeline={{_base_.train_pipeline}},
    ),
)
val_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/folders',
        data_prefix='val',
        pipeline={{_base_.test_pipeline}},
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# The nearer to the image, the less the pretrained weights need to move.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05, betas=(0.9, 0.999)),
    constructor='mmvit_backbones.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=3,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=3, end=30),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=64)
