"""SegFormer head on XCiT-T12/16, 160k iterations on ADE20K at 512 x 512.

Paper: none with this backbone (XCiT is https://arxiv.org/abs/2106.09681); the head is SegFormer's,
    https://arxiv.org/abs/2105.15203, with the values of mmseg for MiT.
Command: tools/dist_train.sh configs/segformer/xcit-t12-p16_segformer_8xb2-160k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 160,000 iterations.
Weights: starts from xcit_tiny_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
No number is reported for this model, by the papers or by us.
"""

_base_ = [
    '../_base_/backbones/xcit-t12-p16.py',
    '../_base_/models/segformer.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.0),
    decode_head=dict(in_channels=_base_.channels),
)

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'decode_head': dict(lr_mult=10.0),
        }
    )
)
