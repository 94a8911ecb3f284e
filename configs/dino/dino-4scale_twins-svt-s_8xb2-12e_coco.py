"""DINO-DETR with four scales on Twins-SVT-S, 12 epochs on COCO.

Paper: none with this backbone (Twins-SVT is https://arxiv.org/abs/2104.13840); the head is DINO,
    https://arxiv.org/abs/2203.03605, with the values of mmdet (dino-4scale_r50_improved_8xb2-12e).
Command: tools/dist_train.sh configs/dino/dino-4scale_twins-svt-s_8xb2-12e_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/dino-4scale.py',
    '../_base_/datasets/coco_detection_ms-crop.py',
    '../_base_/schedules/dino_12e.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels[1:]),
)

# Images without boxes stay in.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
