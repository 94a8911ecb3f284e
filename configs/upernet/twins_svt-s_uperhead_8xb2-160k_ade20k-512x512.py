"""UperNet on Twins-SVT-S, 160k iterations on ADE20K at 512 x 512.

Paper: Twins, https://arxiv.org/abs/2104.13840, Table 2 (UperNet).
Command: tools/dist_train.sh configs/upernet/twins_svt-s_uperhead_8xb2-160k_ade20k-512x512.py 8
Batch: 8 GPUs x 2 images = 16; 160,000 iterations.
Weights: starts from twins_svt_small.in1k, downloaded at the first start.
Status: untested
mIoU 46.2 single-scale, 47.1 multi-scale (--tta) on validation, reported by the paper.
"""

_base_ = [
    '../_base_/backbones/twins-svt-s.py',
    '../_base_/models/upernet.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)

# No weight decay for position encodings and norms.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'pos_block': dict(decay_mult=0.0), 'norm': dict(decay_mult=0.0)}
    )
)
