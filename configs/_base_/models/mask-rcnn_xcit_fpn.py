# Mask R-CNN on XCiT-T12/16, after the authors' detection/configs/_base_/models/mask_rcnn_xcit_p16.
_base_ = ['./mask-rcnn_twins-svt_fpn.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvit_backbones.XCiT',
        arch='tiny-12',
        patch_size=16,
        norm_cfg=dict(type='SyncBN'),
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[192, 192, 192, 192]),
)
