# Semantic FPN on XCiT-T12/16, after the authors' semantic_segmentation/configs/_base_/models. The
# FPN is as wide as the backbone.
_base_ = ['./sem-fpn_twins-svt.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvit_backbones.XCiT',
        arch='tiny-12',
        patch_size=16,
        norm_cfg=dict(type='SyncBN'),
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[192, 192, 192, 192], out_channels=192),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
)
