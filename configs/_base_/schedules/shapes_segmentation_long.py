# As shapes_segmentation.py, with 800 iterations and half the learning rate: at 1e-3 a UperNet may do
# no more than tell shapes from background until the rate has fallen.
_base_ = ['./shapes_segmentation.py']

optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(max_iters=800, val_interval=800)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=50, end=800, by_epoch=False),
]
