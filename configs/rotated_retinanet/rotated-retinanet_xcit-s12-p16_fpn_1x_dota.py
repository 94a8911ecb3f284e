"""RetinaNet for rotated boxes on XCiT-S12/16, 1x on DOTA.

Paper: none with this backbone (XCiT is https://arxiv.org/abs/2106.09681); the head is mmrotate's
    (rotated-retinanet-rbox-le90_r50_fpn_1x_dota), the optimizer that of Twins' RetinaNet.
Command: bash dist_train.sh configs/rotated_retinanet/rotated-retinanet_xcit-s12-p16_fpn_1x_dota.py 8, with the dist_train.sh of mmrotate's tools
Batch: 8 GPUs x 2 images = 16; 12 epochs.
Weights: starts from xcit_small_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/rotated-retinanet_fpn.py',
    '../_base_/datasets/dota.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/rot_runtime.py',
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
