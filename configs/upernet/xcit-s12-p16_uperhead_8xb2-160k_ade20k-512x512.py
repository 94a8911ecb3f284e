"""UperNet on XCiT-S12/16, 160k iterations on ADE20K at 512 x 512.

Paper: XCiT, https://arxiv.org/abs/2106.09681, UperNet on ADE20K.
Command: tools/dist_train.sh configs/upernet/xcit-s12-p16_uperhead_8xb2-160k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 160,000 iterations.
Weights: starts from xcit_small_12_p16.dist_in1k_384, downloaded at the first start.
Status: untested
mIoU 45.9 on validation, reported by the authors' README.
"""

_base_ = [
    '../_base_/backbones/xcit-s12-p16.py',
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.05),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)

# No weight decay for layer norms. Batch norms, named otherwise, keep it as in the authors' code.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}))
