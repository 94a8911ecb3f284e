# A toy Twins-SVT, from scratch.
backbone = dict(
    type='mmvit_backbones.TwinsSVT',
    arch=dict(
        embed_dims=(32, 64, 128, 160),
        stages=('LG', 'LG', 'LG', 'LG'),
        num_heads=(1, 2, 4, 5),
        paper_init=False,  # too small for so narrow a network
    ),
)
channels = [32, 64, 128, 160]
