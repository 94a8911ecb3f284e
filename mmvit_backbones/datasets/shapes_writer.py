"""Write shapes data in the folder formats of COCO, ADE20K and ImageNet.

The images are JPEG, as the real data sets have them. The COCO and the ADE20K part show the same
scenes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .shapes import (
    MIN_SIDE,
    SHAPE_CLASSES,
    BoolArray,
    Instance,
    Scene,
    Uint8Array,
    draw_portrait,
    draw_scene,
)

FORMATS = ('coco', 'ade', 'imagenet')
MANIFEST = 'shapes.json'

# To be raised when the same arguments begin to give other data.
_VERSION = 2
_MAX_SEED = 2**32 - 1
_MAX_IMAGES = 2**31
_SIZE_VARIATION = 0.2
_SPLITS = ('train', 'val')
_ADE_SPLITS = {'train': 'training', 'val': 'validation'}


def write_shapes(
    root: str | Path,
    formats: Sequence[str] = FORMATS,
    train: int = 800,
    val: int = 100,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    progress: bool = False,
) -> bool:
    """Write a training and a validation split of shapes data into a folder.

    The same arguments give the same bytes. The folder appears only when it is complete. It holds
    `coco/{train,val}` with `coco/annotations/instances_{train,val}.json`;
    `ade/{images,annotations}/{training,validation}`, whose label 0 means unlabelled;
    `imagenet/{train,val}/<class>`; and `shapes.json`, which says what it was made from.

    Of every 16 images of the first two formats one is empty and one crowded. Sides are up to a
    fifth shorter than `size`, and one image in four stands upright.

    Args:
        root: Folder to write. If shapes data stands there already, it is left alone when it was
            made with the same arguments and is complete, and else replaced.
        formats: What to write, of `FORMATS`.
        train: Training images of each format.
        val: Validation images of each format; no scene is in both splits.
        size: Largest height and width of an image, in pixels, each from 60.
        seed: From 0 to 2**32 - 1; another seed gives other scenes.
        progress: Show a progress bar for each split; needs `rich`.

    Returns:
        Whether data was written; false if it was all there.

    Raises:
        ValueError: If an argument is outside its range.
        FileExistsError: If `root` holds a file that was not written by this function.
    """
    _check_arguments(formats, train, val, size, seed)
    root = Path(root)
    arguments: dict[str, Any] = {
        'version': _VERSION,
        # Another order or a repetition is the same data.
        'formats': [name for name in FORMATS if name in formats],
        'train': train,
        'val': val,
        'size': list(size),
        'seed': seed,
    }
    if _is_complete(root, arguments):
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as scratch:
        # A folder below, because the temporary one can be read by its owner only.
        fresh, replaced = Path(scratch, 'fresh'), Path(scratch, 'replaced')
        fresh.mkdir()
        writers = {'coco': _write_coco, 'ade': _write_ade, 'imagenet': _write_imagenet}
        for name in arguments['formats']:
            for split, count in zip(_SPLITS, (train, val), strict=True):
                jobs = [(scene_seed(seed, split, index), index) for index in range(count)]
                announced = _announce(jobs, f'{name} {split}') if progress else jobs
                writers[name](fresh / name, split, announced, size)
        manifest = {'arguments': arguments, 'files': _list_files(fresh)}
        _write_json(fresh / MANIFEST, manifest)
        if root.exists():
            root.rename(replaced)
        fresh.rename(root)
    return True


def scene_seed(seed: int, split: str, index: int) -> int:
    """A scene's seed, another one for each image of each split of each data set seed."""
    return (seed * len(_SPLITS) + _SPLITS.index(split)) * _MAX_IMAGES + index


def _check_arguments(
    formats: Sequence[str], train: int, val: int, size: tuple[int, int], seed: int
) -> None:
    # A plain string would pass letter by letter.
    if isinstance(formats, str) or not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f'formats must be some of {FORMATS}, got {formats!r}')
    for name, count in (('train', train), ('val', val)):
        if not 1 <= count <= _MAX_IMAGES:
            raise ValueError(f'{name} must be from 1 to {_MAX_IMAGES} images, got {count}')
    smallest = round(MIN_SIDE / (1 - _SIZE_VARIATION))
    if len(size) != 2 or min(size) < smallest:
        raise ValueError(f'size must be a height and a width from {smallest} px, got {size}')
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f'seed must be from 0 to {_MAX_SEED}, got {seed}')


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Whether the data is there.

    Raises:
        FileExistsError: If something else is there, too.
    """
    if not root.exists():
        return False
    if not root.is_dir():
        raise FileExistsError(f'{root} is a file; shapes data needs a folder')
    found = set(_list_files(root))
    manifest = _read_manifest(root / MANIFEST)
    foreign = sorted(found - {MANIFEST, *manifest['files']} if manifest else found)
    if foreign:
        raise FileExistsError(
            f'{root} holds {len(foreign)} files that are no shapes data, such as {foreign[0]!r}; '
            'they would be lost. Name another folder, or move them away.'
        )
    return bool(manifest) and manifest['arguments'] == arguments and found >= set(manifest['files'])


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, or an empty one if the file is missing or another program's."""
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    is_ours = isinstance(manifest, dict) and manifest.keys() == {'arguments', 'files'}
    return manifest if is_ours else {}


def _list_files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob('*') if not path.is_dir()
    )


def _announce(jobs: list[tuple[int, int]], description: str) -> Iterable[tuple[int, int]]:
    from rich.progress import track

    return track(jobs, description=f'{description:14}')


def _write_coco(
    folder: Path, split: str, jobs: Iterable[tuple[int, int]], size: tuple[int, int]
) -> None:
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for seed, index in jobs:
        scene = _draw_indexed_scene(seed, index, size)
        height, width = scene.label_map.shape
        image_id = index + 1
        name = f'{image_id:012}.jpg'
        _write_jpeg(folder / split / name, scene.image)
        images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        for instance in scene.instances:
            annotation_id = len(annotations) + 1
            annotations.append(
                {'id': annotation_id, 'image_id': image_id, **_annotate(instance)},
            )
    categories = [
        {'id': label + 1, 'name': name, 'supercategory': 'shape'}
        for label, name in enumerate(SHAPE_CLASSES)
    ]
    _write_json(
        folder / 'annotations' / f'instances_{split}.json',
        {'images': images, 'annotations': annotations, 'categories': categories},
    )


def _write_ade(
    folder: Path, split: str, jobs: Iterable[tuple[int, int]], size: tuple[int, int]
) -> None:
    image_folder = folder / 'images' / _ADE_SPLITS[split]
    label_folder = folder / 'annotations' / _ADE_SPLITS[split]
    image_folder.mkdir(parents=True)
    label_folder.mkdir(parents=True)
    for seed, index in jobs:
        scene = _draw_indexed_scene(seed, index, size)
        stem = f'shapes_{split}_{index + 1:08}'
        _write_jpeg(image_folder / f'{stem}.jpg', scene.image)
        Image.fromarray(scene.label_map).save(label_folder / f'{stem}.png')


def _write_imagenet(
    folder: Path, split: str, jobs: Iterable[tuple[int, int]], size: tuple[int, int]
) -> None:
    for name in SHAPE_CLASSES:
        (folder / split / name).mkdir(parents=True)
    for seed, index in jobs:
        label = index % len(SHAPE_CLASSES)
        scene = draw_portrait(seed, label, _vary_size(seed, size))
        file = f'shapes_{split}_{index + 1:08}.JPEG'
        _write_jpeg(folder / split / SHAPE_CLASSES[label] / file, scene.image)


def _draw_indexed_scene(seed: int, index: int, size: tuple[int, int]) -> Scene:
    """The scene at a place in its split; the place decides the kind: small sets have all kinds."""
    if index % 16 == 5:
        return draw_scene(seed, _vary_size(seed, size), 'empty')
    if index % 16 == 10:
        return draw_scene(seed, _vary_size(seed, size), 'crowded')
    return draw_scene(seed, _vary_size(seed, size))


def _vary_size(seed: int, size: tuple[int, int]) -> tuple[int, int]:
    # A stream of its own: what is drawn must not follow from the image's size.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    height, width = (round(side * rng.uniform(1 - _SIZE_VARIATION, 1)) for side in size)
    return (width, height) if rng.uniform() < 0.25 else (height, width)


def _annotate(instance: Instance) -> dict[str, Any]:
    """The fields of a COCO annotation that follow from the mask."""
    rows = np.flatnonzero(instance.mask.any(axis=1))
    columns = np.flatnonzero(instance.mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        'category_id': instance.label + 1,
        'bbox': [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        'area': int(instance.mask.sum()),
        'iscrowd': int(instance.is_crowd),
        'segmentation': _encode_runs(instance.mask),
    }


def _encode_runs(mask: BoolArray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: down the columns, the first run is of zeros.

    Polygons could not say where a ring's hole or another shape in front is.
    """
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(changes, prepend=0, append=flat.size)
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def _write_jpeg(path: Path, image: Uint8Array) -> None:
    # Full colour resolution: small shapes differ from the background by colour alone.
    Image.fromarray(image).save(path, 'JPEG', quality=95, subsampling=0)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding='utf-8')
