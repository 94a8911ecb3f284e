# XCiT-S24/8 with the authors' ImageNet-1k weights, distilled at 384 x 384, as dense prediction
# starts from it, the channels of its feature maps at strides 4, 8, 16 and 32, and its depth.
backbone = dict(
    type='mmvit_backbones.XCiT',
    arch='small-24',
    patch_size=8,
    norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='xcit_small_24_p8.dist_in1k_384'),
)
channels = [384, 384, 384, 384]
depth = 24
