"""XCiT-T24/16 on ImageNet-1k at 384 x 384: fine-tuning, and the test of the authors' weights.

Paper: XCiT, https://arxiv.org/abs/2106.09681, Table 1 (ImageNet-1k).
Command: tools/dist_train.sh configs/imagenet/xcit-tiny-24-p16_8xb64_in1k-384px.py 8
Batch: 8 GPUs x 64 images = 512; 30 epochs.
Weights: starts from xcit_tiny_24_p16.in1k, the authors' weights trained at 224;
    downloaded at the first start of a training.
Status: untested
Top-1 82.6 on validation for xcit_tiny_24_p16_384_dist.pth (distilled), reported by the authors' README.
    Their settings for training at 384 are not published: the schedule here is ours.
"""

_base_ = [
    '../_base_/models/classifier_xcit.py',
    '../_base_/datasets/imagenet_384_full-crop.py',
    '../_base_/schedules/imagenet_finetune_30e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint='xcit_tiny_24_p16.in1k'),
    backbone=dict(arch='tiny-24', out_indices=(23,)),
    neck=dict(in_channels=192, num_heads=4, layer_scale=1e-5),
    head=dict(in_channels=192),
)
