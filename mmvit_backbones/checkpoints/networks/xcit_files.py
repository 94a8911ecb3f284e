"""XCiT: the public files."""

from __future__ import annotations

from collections.abc import Iterator

from mmvit_backbones.checkpoints.description import PublicFile, at
from mmvit_backbones.checkpoints.networks.sources import drive, mmpretrain_files, rows, timm_hub

_AUTHORS = 'https://github.com/facebookresearch/xcit'
_DINO = 'https://github.com/facebookresearch/dino'
_ROBUST = 'https://github.com/RobustBench/robustbench'
_ROBUST_AUTHORS = 'https://github.com/dedeswim/vits-robustness-torch'
_FILES = 'https://dl.fbaipublicfiles.com/xcit/'
_DINO_FILES = 'https://dl.fbaipublicfiles.com/dino/'
_ROBUST_FILES = f'{_ROBUST}/releases/download/v1.1/'

# Top-1 trained alone, with a teacher, with a teacher at 384 px; then dates and hashes of
# mmpretrain's files in that order.
_IMAGENET = """
nano_12_p16   69.9 72.2 75.4 13-ed776c38 13-fb247f7b 13-712db4d4
tiny_12_p16   77.1 78.6 80.9 13-82c547ca 13-d5fde0a3 13-00a20023
tiny_24_p16   79.4 80.4 82.6 13-366c1cd0 13-b472e80a 13-20e13917
small_12_p16  82.0 83.3 84.7 13-d36779d2 13-c95bbae1 13-ba36c982
small_24_p16  82.6 83.9 85.1 13-40febe38 13-130d7262 13-28fa2d0e
medium_24_p16 82.7 84.3 85.4 13-ad0aa92e 13-aca5cd0c 14-6c23a201
large_24_p16  82.9 84.9 85.8 14-d29d2529 14-4fea599c 14-bd515a34
nano_12_p8    73.8 76.3 77.8 13-3370c293 13-2f87d2b3 13-09d925ef
tiny_12_p8    79.7 81.2 82.4 13-8b02f8f5 13-f3f9b44f 13-a072174a
tiny_24_p8    81.9 82.6 83.7 13-4b9ba392 13-ad9c44b0 13-30d5e5ec
small_12_p8   83.4 84.2 85.1 13-9e364ce3 13-71886580 14-9f2178bc
small_24_p8   83.9 84.9 85.6 13-280ebcc7 13-f2773c78 14-57298eca
medium_24_p8  83.7 85.1 85.8 14-c362850b 14-625c953b 14-5db925e0
large_24_p8   84.4 85.4 86.0 14-08f2f664 14-8c092b34 14-9f718b1a
"""
# Linear and k-NN accuracy on ImageNet-1k.
_SELF_SUPERVISED = """
small_12_p16  77.8 76.0
small_12_p8   79.2 77.1
medium_24_p16 78.8 76.4
medium_24_p8  80.3 77.9
"""
# Data; accuracy on clean images and under AutoAttack; the authors' download page.
_ADVERSARIAL = """
small_12_p16  in1k      72.34 41.78 1wbx18o4l_ECyEYo9eyHnIYPlSNRMpO-D
medium_12_p16 in1k      74.04 45.24 184utgGfgh6m_GDBe_mETWf0HmxksGCHH
large_12_p16  in1k      73.76 47.60 154l0cWMtBMK64yG7gn3fzoTQSATHR8H5
small_12_p16  in1k_eps8 63.46 25.00 1lFcXruv6lUz9XqxvXTzyA_7YLprPZq2q
medium_12_p16 in1k_eps8 67.80 26.58 1Nw86jzlXLEGbFQZtd39i0Mampwh2ZAFv
large_12_p16  in1k_eps8 69.24 28.74 1UPDBDkirsxUGBEDrznJrTZ0JR173nMlv
small_12_p4   cifar10   90.06 56.14 1hu7Z4LhR4OOL3gmbHuT9ljRTSKIxGbPs
medium_12_p4  cifar10   91.30 57.27 1yan2zUNA6s6zDc0MOkfgCr3ctjWcQEI0
large_12_p4   cifar10   91.73 57.58 1NWI77UiSD5nOx6dQgvIyPRYQof-8ke-y
small_12_p4   cifar100  67.34 32.19 13vFwvVWEESfWWpoicPhD08HtzYszeyUr
medium_12_p4  cifar100  69.21 34.21 1YXnGsY3yvvaMucMwyfhDHIUchOSungj2
large_12_p4   cifar100  70.76 35.08 1Sg4BQ5pBdlR_M41VDxOlYxCl1_It8elL
"""
# Image size, classes, mean and std, as RobustBench feeds the models of each data set: those of
# ImageNet take pixels in [0, 1] as they are.
_ROBUST_INPUTS = {
    'in1k': (224, 1000, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    'cifar10': (32, 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    'cifar100': (32, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
# Box and mask AP of Mask R-CNN, mIoU of Semantic FPN and UperNet.
_DENSE = """
tiny_12_p16   42.7 38.5 38.1 41.5
tiny_12_p8    44.5 40.3 39.9 43.5
small_12_p16  45.3 40.8 43.9 45.9
small_12_p8   47.0 42.3 44.2 46.6
small_24_p16  46.5 41.8 44.6 46.9
small_24_p8   48.1 43.0 47.1 48.1
medium_24_p16 46.7 42.0 45.9 47.6
medium_24_p8  48.5 43.7 46.9 48.4
"""


def _classifiers() -> Iterator[PublicFile]:
    for size, *row in rows(_IMAGENET):
        model, theirs = f'xcit_{size}', f'xcit-{size.replace("_", "-")}'
        for i, (tag, pixels, dist) in enumerate(
            (('in1k', 224, ''), ('dist_in1k', 224, '_dist'), ('dist_in1k_384', 384, '_dist'))
        ):
            kind = f'3rdparty{dist.replace("_", "-")}_in1k{"-384px" if pixels == 384 else ""}'
            mirrors = at(
                timm_hub(f'{model}_{pixels}.fb{dist}_in1k'),
                f'{_FILES}{model}_{pixels}{dist}.pth',
                *mmpretrain_files(f'xcit/{theirs}_{kind}_202302{row[3 + i]}.pth'),
            )
            top1 = (float(row[i]),)
            yield PublicFile(f'{model}.{tag}', model, mirrors, pixels, 'top-1', top1, _AUTHORS)


def _self_supervised() -> Iterator[PublicFile]:
    """Whether the two repositories hold the same numbers is not known."""
    for size, *row in rows(_SELF_SUPERVISED):
        model, file, top1 = f'xcit_{size}', f'dino_xcit_{size}_pretrain', tuple(map(float, row))
        for tag, url, source in (
            ('dino', f'{_DINO_FILES}{file}/{file}.pth', _DINO),
            ('xcit_dino', f'{_FILES}{model.replace("_p", "_cp")}_dino.pth', _AUTHORS),
        ):
            name, metric = f'{model}.{tag}', 'linear / k-NN top-1'
            yield PublicFile(name, model, at(url), 224, metric, top1, source, num_classes=0)


def _adversarial() -> Iterator[PublicFile]:
    for size, data, clean, attacked, page in rows(_ADVERSARIAL):
        pixels, classes, mean, std = _ROBUST_INPUTS[data.removesuffix('_eps8')]
        is_hosted = not data.endswith('_eps8')
        theirs = f'{size[0]}-{data.replace("in1k", "imagenet")}'
        urls = [f'{_ROBUST_FILES}debenedetti2022light-xcit-{theirs}-linf.pth.tar'] * is_hosted
        yield PublicFile(
            f'xcit_{size}.robust_{data}',
            f'xcit_{size}',
            (*at(*urls), drive(page)),
            pixels,
            'top-1 clean / under AutoAttack',
            (float(clean), float(attacked)),
            _ROBUST if is_hosted else _ROBUST_AUTHORS,
            classes,
            'MIT' if is_hosted else 'not stated',
            mean,
            std,
        )


def _dense() -> Iterator[PublicFile]:
    for size, *row in rows(_DENSE):
        model = f'xcit_{size}'
        box, mask, fpn, upernet = map(float, row)
        url, metric = at(f'{_FILES}coco/maskrcnn_{model}.pth'), 'box AP / mask AP'
        name, ap = f'mask_rcnn_{model}.coco', (box, mask)
        yield PublicFile(name, model, url, 800, metric, ap, _AUTHORS, num_classes=80)
        for method, miou in (('sem_fpn', fpn), ('upernet', upernet)):
            name, url = f'{method}_{model}.ade20k', at(f'{_FILES}ade/{method}_{model}.pth')
            yield PublicFile(name, model, url, 512, 'mIoU', (miou,), _AUTHORS, num_classes=150)


FILES = (*_classifiers(), *_self_supervised(), *_adversarial(), *_dense())
