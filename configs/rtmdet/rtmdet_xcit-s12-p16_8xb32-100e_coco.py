"""RTMDet-L on XCiT-S12/16, 100 epochs on COCO at 640 x 640.

Paper: none with this backbone (XCiT is https://arxiv.org/abs/2106.09681); the head is RTMDet,
    https://arxiv.org/abs/2212.07784, with the values of mmdet for ConvNeXt-B
    (rtmdet_l_convnext_b_4xb32-100e), the decay by layer is ours.
Command: tools/dist_train.sh configs/rtmdet/rtmdet_xcit-s12-p16_8xb32-100e_coco.py 8
Batch: 8 GPUs x 32 images = 256; 100 epochs.
Weights: starts from xcit_small_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/rtmdet-l.py',
    '../_base_/schedules/rtmdet_100e.py',
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

# The first layer learns at 0.85 ** 13 = 0.12 of the rate of the head.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85))
