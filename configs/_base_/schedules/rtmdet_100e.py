# 100 epochs of RTMDet with the values of mmdet for ConvNeXt-B; the learning rate is for 8 GPUs x 32
# images = 256. Mosaic and mixup end with epoch 90. A leaf adds the decay of the learning rate by layer.
_base_ = ['../datasets/coco_detection_mosaic-640.py', '../det_runtime.py']

train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=100, val_interval=10, dynamic_intervals=[(90, 1)]
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmvit_backbones.LayerDecayOptimWrapperConstructor',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-5,
        begin=50,
        end=100,
        T_max=50,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=256)
default_hooks = dict(checkpoint=dict(interval=10))
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.0002,
        update_buffers=True,
        priority=49,
    ),
    dict(
        type='PipelineSwitchHook',
        switch_epoch=90,
        switch_pipeline=_base_.train_pipeline_stage2,
    ),
]
