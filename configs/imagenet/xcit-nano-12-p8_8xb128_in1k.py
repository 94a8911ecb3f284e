"""XCiT-N12/8 on ImageNet-1k at 224 x 224, as in the code of the XCiT authors.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/xcit-nano-12-p8_8xb128_in1k.py 8
Batch: 8 GPUs x 128 images = 1024; 400 epochs.
Weights: none, from scratch.
Status: untested
Top-1 73.8 on validation, and 76.3 for the distilled weights xcit_nano_12_p8_224_dist.pth, which this
    config tests too; both reported by the authors' README.
"""

_base_ = [
    '../_base_/models/classifier_xcit.py',
    '../_base_/datasets/imagenet_224_full-crop.py',
    '../_base_/schedules/imagenet_400e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    backbone=dict(arch='nano-12', patch_size=8),
    neck=dict(in_channels=128, num_heads=4, tokens_norm=False),
    head=dict(in_channels=128),
)
