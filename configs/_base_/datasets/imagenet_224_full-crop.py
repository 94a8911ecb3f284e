# As imagenet_224.py, with repeated augmentation (each drawn image three times) and tested on the
# whole short edge, as XCiT's authors do.
_base_ = ['./imagenet_224.py']

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True, num_repeats=3)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
