# A toy XCiT, from scratch. Its patches of 8 x 8 px suit small images, its group norms small batches.
backbone = dict(
    type='mmvit_backbones.XCiT',
    arch=dict(embed_dims=96, depth=6, num_heads=4, layer_scale=1.0),
    patch_size=8,
    norm_cfg=dict(type='GN', num_groups=8),
)
channels = [96, 96, 96, 96]
depth = 6
