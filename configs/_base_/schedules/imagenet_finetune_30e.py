# 30 epochs at a higher resolution. Neither network's authors have published their settings; these
# follow DeiT's: AdamW, learning rate 5e-6 for 512 images, next to no weight decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-6 * 512 / 512, weight_decay=1e-8, betas=(0.9, 0.999)),
)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=0, end=30),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=512)
