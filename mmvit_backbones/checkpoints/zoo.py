"""Public files of every architecture, as their authors name and report them.

No accuracy here was measured by us: `top1` is what the source reports for ImageNet-1k. Parameters
and multiply-adds are ours, of a classifier with 1000 classes on one image of 224 x 224 pixels; see
`mmvit_backbones.complexity` for what is counted. They are those of the published networks; our
XCiT takes a cheaper order of the same products where there is one. Reported numbers of Twins-SVT
leave out attention's own matrix products and so are a little lower.
"""

from __future__ import annotations

from dataclasses import dataclass

TWINS_SOURCE = 'https://github.com/Meituan-AutoML/Twins'
XCIT_SOURCE = 'https://github.com/facebookresearch/xcit'
XCIT_FILES = 'https://dl.fbaipublicfiles.com/xcit/'
SELF_SUPERVISED = ('xcit_small_12_', 'xcit_medium_24_')  # there are DINO weights of these


@dataclass(frozen=True)
class PublicFile:
    """Weights that anyone can download.

    Attributes:
        name: File name.
        address: Where the authors keep it. A page of Google Drive is not the file itself: download
            it by hand and name its path.
        image_size: Side in pixels of the images of the reported accuracy.
        top1: Top-1 accuracy on ImageNet-1k in percent, reported by `source`; None for
            self-supervised weights without a head.
        source: Who reports it.
        is_distilled: Trained with a teacher.
    """

    name: str
    address: str
    image_size: int
    top1: float | None
    source: str
    is_distilled: bool = False


@dataclass(frozen=True)
class ZooEntry:
    """One architecture.

    Attributes:
        parameters: Of the classifier.
        multiply_adds: Of the classifier at 224 x 224.
        files: The authors' files.
        timm: Names of the same weights in timm's hub.
    """

    parameters: int
    multiply_adds: int
    files: tuple[PublicFile, ...] = ()
    timm: tuple[str, ...] = ()


def _twins(size: str, parameters: int, multiply_adds: int, drive_id: str, top1: float) -> ZooEntry:
    address = f'https://drive.google.com/file/d/{drive_id}/view?usp=sharing'
    file = PublicFile(f'alt_gvt_{size}.pth', address, 224, top1, TWINS_SOURCE)
    return ZooEntry(parameters, multiply_adds, (file,), (f'twins_svt_{size}.in1k',))


def _xcit(
    name: str, parameters: int, multiply_adds: int, top1: tuple[float, float, float]
) -> ZooEntry:
    """`top1` is that of training alone, with a teacher, and with a teacher at 384 x 384."""
    files = [
        _xcit_file(f'{name}_224', 224, top1[0]),
        _xcit_file(f'{name}_224_dist', 224, top1[1]),
        _xcit_file(f'{name}_384_dist', 384, top1[2]),
    ]
    if name.startswith(SELF_SUPERVISED):
        files.append(_xcit_file(f'{name.replace("_p", "_cp")}_dino', 224, None))
    timm = (f'{name}_224.fb_in1k', f'{name}_224.fb_dist_in1k', f'{name}_384.fb_dist_in1k')
    return ZooEntry(parameters, multiply_adds, tuple(files), timm)


def _xcit_file(stem: str, image_size: int, top1: float | None) -> PublicFile:
    name = f'{stem}.pth'
    is_distilled = stem.endswith('_dist')
    return PublicFile(name, XCIT_FILES + name, image_size, top1, XCIT_SOURCE, is_distilled)


ZOO = {
    'twins_svt_small': _twins(
        'small', 24_060_776, 2_927_353_344, '131SVOphM_-SaBytf4kWjo3ony5hpOt4S', 81.7
    ),
    'twins_svt_base': _twins(
        'base', 56_070_952, 8_562_612_480, '1s83To8xgDWY6Ad8VBP3Nx9gqY709rrGu', 83.2
    ),
    'twins_svt_large': _twins(
        'large', 99_271_400, 15_111_777_280, '1um39wxIaicmOquP2fr_SiZdxNCUou8w-', 83.7
    ),
    # The package vit-pytorch publishes no weights.
    'twins_svt_vit_pytorch': ZooEntry(252_025_096, 7_510_077_952),
    **{
        name: _xcit(name, parameters, multiply_adds, top1)
        for name, parameters, multiply_adds, top1 in (
            ('xcit_nano_12_p8', 3_049_016, 2_127_410_688, (73.8, 76.3, 77.8)),
            ('xcit_nano_12_p16', 3_053_224, 549_461_504, (69.9, 72.2, 75.4)),
            ('xcit_tiny_12_p8', 6_706_504, 4_761_719_040, (79.7, 81.2, 82.4)),
            ('xcit_tiny_12_p16', 6_716_272, 1_227_902_208, (77.1, 78.6, 80.9)),
            ('xcit_tiny_24_p8', 12_107_128, 9_129_439_488, (81.9, 82.6, 83.7)),
            ('xcit_tiny_24_p16', 12_116_896, 2_319_832_320, (79.4, 80.4, 82.6)),
            ('xcit_small_12_p8', 26_213_032, 18_600_239_616, (83.4, 84.2, 85.1)),
            ('xcit_small_12_p16', 26_253_304, 4_791_360_000, (82.0, 83.3, 84.7)),
            ('xcit_small_24_p8', 47_631_112, 35_659_276_800, (83.9, 84.9, 85.6)),
            ('xcit_small_24_p16', 47_671_384, 9_056_119_296, (82.6, 83.9, 85.1)),
            ('xcit_medium_24_p8', 84_323_624, 63_321_004_032, (83.7, 85.1, 85.8)),
            ('xcit_medium_24_p16', 84_395_752, 16_077_633_536, (82.7, 84.3, 85.4)),
            ('xcit_large_24_p8', 188_932_648, 140_920_144_896, (84.4, 85.4, 86.0)),
            ('xcit_large_24_p16', 189_096_136, 35_778_057_216, (82.9, 84.9, 85.8)),
        )
    },
}
