# 400 epochs as in XCiT's code: AdamW, learning rate 5e-4 * 1024 / 512 for 1024 images, warm-up for
# 5 epochs from 1e-6, cosine to 1e-5, no clipping. The authors' options name 10 epochs of cooldown,
# which their loop never comes to.
# No weight decay for one-dimensional parameters (biases, norms, LayerScale) and the class token.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4 * 1024 / 512, weight_decay=0.05, betas=(0.9, 0.999)),
    paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys={'cls_token': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=400),
]
train_cfg = dict(by_epoch=True, max_epochs=400, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=1024)

# An average over training is kept (decay 0.99996); the reported numbers are the raw model's.
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        evaluate_on_ema=False,
        evaluate_on_origin=True,
    )
]
