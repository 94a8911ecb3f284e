"""Check the data of a config before training: files, classes, boxes, labels; draw 16 samples.

Prints one line for each kind of fault and ends with status 1 if there is one. Reads the data of
configs of mmdet (COCO files), mmseg and mmpretrain.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine import load
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from numpy.typing import NDArray

SPLITS = ('train', 'val', 'test')
NUM_PICTURES = 16
SIDE = 320  # px of one picture on the sheet
# An image, and its (box as x, y, width, height or None, class name) or its map of labels.
Sample = tuple[NDArray, Any]


class Faults:
    """Faults by kind, with how often each occurs and the first example."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        """Count a fault of a kind."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, example)

    def lines(self) -> list[str]:
        """Return a line for each kind."""
        return [
            f'{kind} ({count} times): {self.examples[kind]}' for kind, count in self.counts.items()
        ]


def find_keys(config: Any, key: str) -> list[Any]:
    """Return all values of a key, at any depth."""
    if isinstance(config, dict):
        here = [config[key]] if key in config else []
        return here + [x for value in config.values() for x in find_keys(value, key)]
    if isinstance(config, (list, tuple)):
        return [x for value in config for x in find_keys(value, key)]
    return []


def build_dataset(config: Config, split: str) -> BaseDataset:
    """Build the data set of a split; its annotations are not read yet."""
    scope = config.default_scope
    options = config[f'{split}_dataloader'].dataset.copy()
    while 'dataset' in options:  # RepeatDataset and the like
        options = options.dataset.copy()
    options.lazy_init = True
    registry = __import__(f'{scope}.registry', fromlist=['DATASETS']).DATASETS
    with DefaultScope.overwrite_default_scope(scope):
        return registry.build(options)


def read(path: str, faults: Faults, kind: str, unchanged: bool = False) -> NDArray | None:
    """Read an image or a label map; None, and a fault, if that is impossible."""
    if not Path(path).is_file():
        faults.add(f'{kind} is missing', path)
        return None
    backend = 'tifffile' if path.endswith(('.tif', '.tiff')) else 'cv2'
    if unchanged and backend == 'cv2':
        backend = 'pillow'  # as mmseg reads label maps
    try:
        image = mmcv.imread(path, flag='unchanged' if unchanged else 'color', backend=backend)
    except (OSError, ValueError, cv2.error):  # what the three readers raise on a broken file
        image = None
    if image is None:
        faults.add(f'{kind} cannot be read', path)
    return image


def check_classes(dataset: BaseDataset, config: Config, faults: Faults) -> None:
    """Compare the classes of the data with those of the model."""
    classes = dataset.metainfo.get('classes')
    sizes = {n for n in find_keys(config.model, 'num_classes') if isinstance(n, int)}
    sizes |= {n for n in find_keys(config.model, 'num_things_classes') if isinstance(n, int)}
    if classes is not None and sizes - {len(classes)}:
        faults.add(
            'num_classes of the model is not the number of classes of the data',
            f'{sorted(sizes)} and {len(classes)}: {", ".join(classes[:5])}',
        )


def check_coco(dataset: BaseDataset, faults: Faults) -> list[Sample]:
    """Check a COCO file: classes, images, boxes, masks. Returns samples to draw."""
    content, classes = load(dataset.ann_file), dataset.metainfo['classes']
    names = {category['id']: category['name'] for category in content['categories']}
    for name in set(classes) - set(names.values()):
        faults.add('class of the config is no category of the file', f'{name!r}; file: {names}')
    for name in set(names.values()) - set(classes):
        faults.add('category of the file is no class of the config, its boxes are left out', name)
    numbered = [name for name in names.values() if name in classes]
    if numbered != [name for name in classes if name in numbered]:
        faults.add(
            'classes have another order than the categories of the file, which number the labels: '
            'predictions get wrong names',
            f'{tuple(classes)}, expected {tuple(numbered)}',
        )
    loads_masks = any(getattr(step, 'with_mask', False) for step in dataset.pipeline.transforms)
    images = {image['id']: image for image in content['images']}
    boxes: dict[int, list[Any]] = {i: [] for i in images}
    for annotation in content['annotations']:
        where = f'annotation {annotation["id"]}'
        image = images.get(annotation['image_id'])
        if image is None:
            faults.add('annotation is of an image that the file does not have', where)
        elif names.get(annotation['category_id']) in classes:
            check_box(annotation, image, where, faults, loads_masks)
            boxes[image['id']].append((annotation['bbox'], names[annotation['category_id']]))
    if not any(boxes.values()):
        faults.add('no box is left', f'of {len(content["annotations"])} in {dataset.ann_file}')
    samples: list[Sample] = []
    for i, image in images.items():
        path = Path(dataset.data_prefix['img']) / image['file_name']
        if len(samples) == NUM_PICTURES:
            if not path.is_file():
                faults.add('image is missing', str(path))
            continue
        pixels = read(str(path), faults, 'image')
        if pixels is not None:
            if pixels.shape[:2] != (image['height'], image['width']):
                faults.add('image has another size than the file says', str(path))
            samples.append((pixels, boxes[i]))
    return samples


def check_box(
    annotation: dict[str, Any],
    image: dict[str, Any],
    where: str,
    faults: Faults,
    loads_masks: bool,
) -> None:
    """Check the box of an annotation, and its mask where masks are loaded."""
    x, y, width, height = annotation['bbox']
    if width < 1 or height < 1:
        faults.add('box is empty (below 1 px)', f'{where}: {annotation["bbox"]}')
    elif x < 0 or y < 0 or x + width > image['width'] or y + height > image['height']:
        size = f'{image["width"]} x {image["height"]}'
        faults.add('box reaches outside the image', f'{where}: {annotation["bbox"]} in {size}')
    if loads_masks and annotation.get('segmentation') == []:
        faults.add('mask is empty', where)


def check_segmentation(dataset: Any, faults: Faults) -> list[Sample]:
    """Check label maps: files, sizes, labels beyond the classes. Returns samples to draw."""
    count, shift = len(dataset.metainfo['classes']), int(bool(dataset.reduce_zero_label))
    seen: set[int] = set()
    samples: list[Sample] = []
    dataset.full_init()
    for info in map(dataset.get_data_info, range(len(dataset))):
        path = info['seg_map_path']
        image = read(info['img_path'], faults, 'image')
        labels = read(path, faults, 'label map', unchanged=True)
        if image is None or labels is None:
            continue
        if labels.ndim != 2:
            faults.add('label map has more than one channel', f'{path}: {labels.shape}')
            continue
        if labels.shape != image.shape[:2]:
            faults.add('image and label map differ in size', path)
        values = set(np.unique(labels).tolist()) - {dataset.ignore_index}
        seen |= values
        for value in sorted(v for v in values if v >= count + shift):
            faults.add(f'label is beyond the {count} classes', f'{value} in {path}')
        if len(samples) < NUM_PICTURES:
            samples.append((image, labels.astype(int) - shift))
    if seen and shift and max(seen) < count:
        faults.add(
            'reduce_zero_label makes 0 mean unlabelled, but no pixel has the last class',
            f'labels are {sorted(seen)}; with {count} classes they would end at {count}. If 0 is '
            'the first class, set reduce_zero_label=False',
        )
    if seen and not shift and max(seen) == count and 0 in seen:
        faults.add(
            'labels end one beyond the last class, as if 0 meant unlabelled',
            f'labels are {sorted(seen)}; if so, set reduce_zero_label=True',
        )
    return samples


def check_classification(dataset: Any, faults: Faults) -> list[Sample]:
    """Check class folders: images, classes without any. Returns samples to draw."""
    dataset.full_init()
    classes = dataset.metainfo['classes']
    step = max(1, len(dataset) // NUM_PICTURES)
    samples: list[Sample] = []
    seen = set()
    for i, info in enumerate(map(dataset.get_data_info, range(len(dataset)))):
        seen.add(int(info['gt_label']))
        image = read(info['img_path'], faults, 'image')
        if image is not None and i % step == 0 and len(samples) < NUM_PICTURES:
            samples.append((image, [(None, classes[info['gt_label']])]))
    for label in set(range(len(classes))) - seen:
        faults.add('class has no image', classes[label])
    return samples


CHECKS = {'mmdet': check_coco, 'mmseg': check_segmentation, 'mmpretrain': check_classification}


def picture(sample: Sample) -> NDArray:
    """Draw annotations on an image, whose first three channels are shown, SIDE px in size."""
    image, annotations = sample
    image = np.atleast_3d(image)[..., :3].astype(np.float32)
    image = np.ascontiguousarray(image / max(1.0, image.max()) * 255, dtype=np.uint8)
    if image.shape[2] < 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    if isinstance(annotations, np.ndarray):
        colours = np.random.default_rng(0).integers(60, 255, (256, 3))
        shown = (annotations >= 0) & (annotations < 255)
        shown &= np.asarray(shown.shape == image.shape[:2])
        if shown.any():
            image[shown] = (image[shown] // 2 + colours[annotations[shown]] // 2).astype(np.uint8)
        annotations = []
    scale = SIDE / max(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale)
    for box, name in annotations:
        x, y, width, height = (round(v * scale) for v in box or (0, 0, 0, 0))
        cv2.rectangle(image, (x, y), (x + width, y + height), (0, 255, 255), 1)
        cv2.putText(image, name, (x, max(y, 0) + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 255), 1)
    sheet = np.zeros((SIDE, SIDE, 3), np.uint8)
    sheet[: image.shape[0], : image.shape[1]] = image[:SIDE, :SIDE]
    return sheet


def draw_sheet(samples: list[Sample], path: Path) -> None:
    """Write up to 16 annotated images, four in a row."""
    pictures = [picture(sample) for sample in samples]
    pictures += [np.zeros((SIDE, SIDE, 3), np.uint8)] * (-len(pictures) % 4)
    rows = [np.hstack(pictures[i : i + 4]) for i in range(0, len(pictures), 4)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows))


def check(config: Config, out: Path | None = None) -> list[str]:
    """Return a line for each kind of fault, with the split before it.

    Args:
        config: A config of mmdet, mmseg or mmpretrain.
        out: Where the sheets go, one a split; none are drawn without it.

    Raises:
        ValueError: If the config is of another toolkit.
    """
    if config.default_scope not in CHECKS:
        raise ValueError(
            f'default_scope must be one of {", ".join(CHECKS)}, got {config.default_scope!r}'
        )
    lines, done = [], []
    for split in SPLITS:
        loader = config.get(f'{split}_dataloader')
        if not loader or loader.dataset in done:
            continue
        done.append(loader.dataset)
        faults = Faults()
        try:
            dataset = build_dataset(config, split)
            samples = CHECKS[config.default_scope](dataset, faults)
            check_classes(dataset, config, faults)
            if out and samples:
                draw_sheet(samples, out / f'{split}.jpg')
        except (AssertionError, KeyError, OSError, RuntimeError) as error:  # as the toolkits raise
            faults.add('data cannot be read', f'{type(error).__name__}: {error}')
        lines += [f'{split}: {line}' for line in faults.lines()]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--out', default='work_dirs/check_data', help='folder for the pictures')
    args = parser.parse_args()
    lines = check(Config.fromfile(args.config), Path(args.out))
    print('\n'.join(lines) or 'no fault found')
    print(f'pictures: {args.out}')
    sys.exit(bool(lines))


if __name__ == '__main__':
    main()
