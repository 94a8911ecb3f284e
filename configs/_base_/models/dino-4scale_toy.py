# DINO-DETR with few queries, layers and channels. A leaf adds the backbone and the channels of its
# feature maps at strides 8, 16 and 32.
_base_ = ['./dino-4scale.py']

width = dict(embed_dims=64)
layer = dict(
    self_attn_cfg=width, cross_attn_cfg=width, ffn_cfg=dict(width, feedforward_channels=256)
)
model = dict(
    num_queries=30,
    neck=dict(out_channels=64, norm_cfg=dict(num_groups=8)),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=width, ffn_cfg=layer['ffn_cfg'])),
    decoder=dict(num_layers=3, layer_cfg=layer),
    positional_encoding=dict(num_feats=32),
    bbox_head=dict(num_classes=4, embed_dims=64),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=30)),
    test_cfg=dict(max_per_img=30),
)
