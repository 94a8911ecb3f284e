# XCiT-N12/8 with the authors' ImageNet-1k weights, distilled at 384 x 384, as dense prediction
# starts from it, the channels of its feature maps at strides 4, 8, 16 and 32, and its depth.
backbone = dict(
    type='mmvit_backbones.XCiT',
    arch='nano-12',
    patch_size=8,
    norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='xcit_nano_12_p8.dist_in1k_384'),
)
channels = [128, 128, 128, 128]
depth = 12
