"""UperNet on Twins-SVT-S for your own label maps.

Paper: none, the settings are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: data/own_seg/images/{train,val}/*.jpg and data/own_seg/labels/{train,val}/*.png of the same
    names, one channel, the value of a pixel is its class from 0 on, 255 counts for nothing.
Command: tools/train.py configs/own_data/twins_svt-s_uperhead_folders.py
Batch: 1 GPU x 4 images; 20,000 iterations.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/seg_runtime.py',
]

# All that depends on the data: the classes in the order of their values, and the folder. As in
# ADE20K, where 0 means unlabelled and class c is stored as c + 1: reduce_zero_label = True.
classes = ('background', 'road', 'building')
data_root = 'data/own_seg'
reduce_zero_label = False

num_classes = len(classes)
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    decode_head=dict(in_channels=_base_.channels, num_classes=num_classes),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=num_classes),
)
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        dataset,
        _delete_=True,
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        _delete_=True,
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader

# 20,000 iterations of 4 images, where the learning rate is for 16.
train_cfg = dict(max_iters=20000, val_interval=2000)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5 * 4 / 16),
    paramwise_cfg=dict(
        custom_keys={'pos_block': dict(decay_mult=0.0), 'norm': dict(decay_mult=0.0)}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=500, end=20000, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(interval=2000))
