"""XCiT-L24/8 on ImageNet-1k at 224 x 224, as in the code of the XCiT authors.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/xcit-large-24-p8_8xb128_in1k.py 8
Batch: 8 GPUs x 128 images = 1024; 400 epochs.
Weights: none, from scratch.
Status: untested
Top-1 84.4 on validation, and 85.4 for the distilled weights xcit_large_24_p8_224_dist.pth, which this
    config tests too; both reported by the authors' README.
"""

_base_ = [
    '../_base_/models/classifier_xcit.py',
    '../_base_/datasets/imagenet_224_full-crop.py',
    '../_base_/schedules/imagenet_400e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    backbone=dict(arch='large-24', patch_size=8, out_indices=(23,)),
    neck=dict(in_channels=768, num_heads=16, layer_scale=1e-5),
    head=dict(in_channels=768),
)
