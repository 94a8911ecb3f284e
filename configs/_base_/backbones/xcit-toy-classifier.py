# A toy XCiT for classification, from scratch: wider and less deep than xcit-toy.py.
backbone = dict(
    type='mmvit_backbones.XCiT',
    arch=dict(embed_dims=128, depth=4, num_heads=4, layer_scale=1.0, cls_layers=1),
    patch_size=8,
)
channels = [128, 128, 128, 128]
depth = 4
