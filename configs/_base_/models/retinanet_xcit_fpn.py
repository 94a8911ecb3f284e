# RetinaNet on XCiT-T12/16. The head starts at stride 4: XCiT makes that map by transposed
# convolutions, which would never get a gradient if the FPN started at stride 8 as in
# retinanet_twins-svt_fpn.py. Anchors keep their sizes, 32 to 512 px, at half the spacing.
_base_ = ['./retinanet_twins-svt_fpn.py']

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
    bbox_head=dict(
        anchor_generator=dict(octave_base_scale=8, strides=[4, 8, 16, 32, 64]),
    ),
)
