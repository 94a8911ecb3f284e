"""RetinaNet on Twins-SVT-S for your own boxes in COCO format.

Paper: none, the settings are ours; Twins-SVT is https://arxiv.org/abs/2104.13840.
Data: data/own_coco/{train,val}.json and the images in data/own_coco/{train,val}/.
Command: tools/train.py configs/own_data/retinanet_twins-svt-s_boxes.py
Batch: 1 GPU x 4 images; 12 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/retinanet_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/det_runtime.py',
]

# All that depends on the data: the names in the order of the COCO files, and the folder.
classes = ('cat', 'dog')
data_root = 'data/own_coco/'

metainfo = dict(classes=classes)
model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels[1:]),
    bbox_head=dict(num_classes=len(classes)),
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
    ),
)
val_dataloader = dict(
    dataset=dict(
        metainfo=metainfo, data_root=data_root, ann_file='val.json', data_prefix=dict(img='val/')
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

# 4 images a step where the schedule is for 16.
optim_wrapper = dict(optimizer=dict(lr=1e-4 * 4 / 16))
auto_scale_lr = dict(base_batch_size=4)
