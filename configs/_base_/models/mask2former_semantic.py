# Mask2Former for semantic segmentation, after mmseg's config for Swin-T: the decoders are those for
# instances, from mmdet, which must be installed. A leaf adds the backbone and the channels of its
# feature maps.
_base_ = ['./mask2former_instance.py']
custom_imports = dict(imports=['mmdet.models'], allow_failed_imports=False)
num_classes = 150
model = dict(
    _delete_=True,
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size_divisor=32),
    ),
    decode_head=dict(
        type='Mask2FormerHead',
        num_classes=num_classes,
        align_corners=False,
        strides=[4, 8, 16, 32],
        feat_channels=256,
        out_channels=256,
        num_queries=100,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            _base_.model.panoptic_head.pixel_decoder, type='mmdet.MSDeformAttnPixelDecoder'
        ),
        enforce_decoder_input_project=False,
        positional_encoding=dict(num_feats=128, normalize=True),
        transformer_decoder=_base_.model.panoptic_head.transformer_decoder,
        loss_cls=dict(
            _base_.model.panoptic_head.loss_cls,
            type='mmdet.CrossEntropyLoss',
            class_weight=[1.0] * num_classes + [0.1],
        ),
        loss_mask=dict(_base_.model.panoptic_head.loss_mask, type='mmdet.CrossEntropyLoss'),
        loss_dice=dict(_base_.model.panoptic_head.loss_dice, type='mmdet.DiceLoss'),
        train_cfg=dict(
            _base_.model.train_cfg,
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[
                    dict(cost, type=f'mmdet.{cost.type}')
                    for cost in _base_.model.train_cfg.assigner.match_costs
                ],
            ),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
