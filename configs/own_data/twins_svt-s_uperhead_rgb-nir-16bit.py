"""UperNet on Twins-SVT-S for images of red, green, blue and near infrared with 16 bits.

Paper: none, the settings are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: data/own_seg/images/{train,val}/*.tif of shape (height, width, 4), uint16, and
    data/own_seg/labels/{train,val}/*.png as in twins_svt-s_uperhead_folders.py.
Command: tools/train.py configs/own_data/twins_svt-s_uperhead_rgb-nir-16bit.py
Batch: 1 GPU x 4 images; 20,000 iterations.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
The weights of the first layer, which are for three channels, are adapted to four when they are
    loaded; the log says so.
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
# ImageNet's values in 16 bits (65535 / 255 = 257); for near infrared those of red. Better measure yours.
# In the pipeline, since mmseg's preprocessor takes one or three channels. Colour distortion, which is
# for three channels of 8 bits, is left out.
mean = [257 * value for value in (123.675, 116.28, 103.53, 123.675)]
std = [257 * value for value in (58.395, 57.12, 57.375, 58.395)]
load = dict(
    type='LoadImageFromFile',
    to_float32=True,
    color_type='unchanged',
    imdecode_backend='tifffile',  # reads channels in their order: no swap to RGB
)
normalize = dict(type='Normalize', mean=mean, std=std, to_rgb=False)
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(_base_.backbone, in_channels=4, drop_path_rate=0.2),
    decode_head=dict(in_channels=_base_.channels, num_classes=num_classes),
    auxiliary_head=dict(in_channels=_base_.channels[2], num_classes=num_classes),
)
train_pipeline = [
    load,
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    normalize,
    dict(type='PackSegInputs'),
]
test_pipeline = [
    load,
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),
    normalize,
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
    reduce_zero_label=reduce_zero_label,
    img_suffix='.tif',
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        dataset,
        _delete_=True,
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        dataset,
        _delete_=True,
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        pipeline=test_pipeline,
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
