"""DINO-DETR with four scales on XCiT-S12/16, 12 epochs on COCO.

Paper: none with this backbone (XCiT is https://arxiv.org/abs/2106.09681); the head is DINO,
    https://arxiv.org/abs/2203.03605, with the values of mmdet (dino-4scale_r50_improved_8xb2-12e).
Command: tools/dist_train.sh configs/dino/dino-4scale_xcit-s12-p16_8xb2-12e_coco.py 8
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from xcit_small_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/dino-4scale.py',
    '../_base_/datasets/coco_detection_ms-crop.py',
    '../_base_/schedules/dino_12e.py',
    '../_base_/det_runtime.py',
]

# The pyramid starts at stride 8: the layers that make stride 4 would get no gradient.
model = dict(
    backbone=dict(_base_.backbone, pyramid=False, out_indices=(5, 7, 11), drop_path_rate=0.05),
    neck=[
        dict(
            type='mmvit_backbones.DeconvPoolPyramid',
            in_channels=_base_.channels[0],
            stride=_base_.backbone.patch_size,
            out_strides=(8, 16, 32),
        ),
        dict(_base_.model.neck, in_channels=_base_.channels[1:]),
    ],
)

# Images without boxes stay in.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
