# Twins-SVT-L with the authors' ImageNet-1k weights, as dense prediction starts from it, and the
# channels of its feature maps at strides 4, 8, 16 and 32.
backbone = dict(
    type='mmvit_backbones.TwinsSVT',
    arch='large',
    out_norm=True,
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_large.in1k'),
)
channels = [128, 256, 512, 1024]
