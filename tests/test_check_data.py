"""The check of data finds nothing in sound data, and names each fault of broken data."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from mmengine.config import Config, ConfigDict

from tests.utils import load_tool

check_data = load_tool('check_data')
NUM_IMAGES = 3
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


def write_coco(folder: Path) -> Config:
    """Three images with a box of each class, and the config that reads them."""
    (folder / 'images').mkdir()
    images, annotations = [], []
    for i in range(NUM_IMAGES):
        cv2.imwrite(str(folder / f'images/{i}.png'), IMAGE)
        images.append(dict(id=i, file_name=f'{i}.png', width=60, height=40))
        for j in range(2):
            annotations.append(
                dict(
                    id=2 * i + j,
                    image_id=i,
                    category_id=j + 1,
                    bbox=[5 + 20 * j, 5, 15, 20],
                    area=300,
                    iscrowd=0,
                    segmentation=[[5, 5, 20, 5, 20, 25]],
                )
            )
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'train.json').write_text(json.dumps(content))
    dataset = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='train.json',
        data_prefix=dict(img='images'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[],
    )
    return config('mmdet', dataset, dict(bbox_head=dict(num_classes=2)))


def write_boxes(folder: Path) -> Config:
    """The same without masks, as a tool for boxes writes it."""
    sound = write_coco(folder)
    edit(lambda c: [a.update(segmentation=[]) for a in c['annotations']])(folder, sound)
    return sound


def write_masks(folder: Path) -> Config:
    """The same, and a config that loads masks."""
    sound = write_coco(folder)
    steps = [dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    sound.train_dataloader.dataset.pipeline = steps
    return sound


def write_labels(folder: Path) -> Config:
    """Three images with labels 0 and 1 in all corners, and the config that reads them."""
    labels = np.indices((40, 60)).sum(0).astype(np.uint8) % 2
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    for i in range(NUM_IMAGES):
        cv2.imwrite(str(folder / f'images/{i}.jpg'), IMAGE)
        cv2.imwrite(str(folder / f'labels/{i}.png'), labels)
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('field', 'road')),
        pipeline=[],
    )
    return config('mmseg', dataset, dict(decode_head=dict(num_classes=2)))


def write_folders(folder: Path) -> Config:
    """Three images of each of two classes, and the config that reads them."""
    for name in ('cat', 'dog'):
        (folder / name).mkdir()
        for i in range(NUM_IMAGES):
            cv2.imwrite(str(folder / f'{name}/{i}.jpg'), IMAGE)
    dataset = dict(type='CustomDataset', data_root=str(folder), pipeline=[])
    return config('mmpretrain', dataset, dict(head=dict(num_classes=2)))


def config(scope: str, dataset: dict[str, Any], model: dict[str, Any]) -> Config:
    return Config(
        dict(default_scope=scope, model=model, train_dataloader=dict(dataset=ConfigDict(dataset)))
    )


def edit(change: Callable[[Any], Any]) -> Callable[[Path, Config], None]:
    """A change of what the COCO file holds."""

    def apply(folder: Path, _: Config) -> None:
        content = json.loads((folder / 'train.json').read_text())
        change(content)
        (folder / 'train.json').write_text(json.dumps(content))

    return apply


def set_option(**options: Any) -> Callable[[Path, Config], None]:
    return lambda _, cfg: cfg.train_dataloader.dataset.update(options)


def write_label(value: int) -> Callable[[Path, Config], None]:
    def apply(folder: Path, _: Config) -> None:
        cv2.imwrite(str(folder / 'labels/1.png'), np.full((40, 60), value, np.uint8))

    return apply


BROKEN = {
    'missing image': (write_coco, lambda f, _: (f / 'images/1.png').unlink(), 'image is missing'),
    'missing annotations': (
        write_coco,
        lambda f, _: (f / 'train.json').unlink(),
        'data cannot be read',
    ),
    'broken image': (
        write_coco,
        lambda f, _: (f / 'images/1.png').write_bytes(b'nothing'),
        'image cannot be read',
    ),
    'classes that match nothing': (
        write_coco,
        set_option(metainfo=dict(classes=('Cat', 'Dog'))),
        'no box is left',
    ),
    'classes in another order': (
        write_coco,
        set_option(metainfo=dict(classes=('dog', 'cat'))),
        r"classes have another order .*\('dog', 'cat'\), expected \('cat', 'dog'\)",
    ),
    'empty mask': (
        write_masks,
        edit(lambda c: c['annotations'][3].update(segmentation=[])),
        'mask is empty .*annotation 3',
    ),
    'one class too many': (
        write_coco,
        set_option(metainfo=dict(classes=('cat', 'dog', 'cow'))),
        "class of the config is no category of the file .*: 'cow'",
    ),
    'box outside': (
        write_coco,
        edit(lambda c: c['annotations'][3].update(bbox=[50, 5, 15, 20])),
        'box reaches outside the image .*annotation 3',
    ),
    'empty box': (
        write_coco,
        edit(lambda c: c['annotations'][3].update(bbox=[50, 5, 0, 20])),
        'box is empty .*annotation 3',
    ),
    'box of no image': (
        write_coco,
        edit(lambda c: c['annotations'][3].update(image_id=99)),
        'annotation is of an image that the file does not have .*annotation 3',
    ),
    'wrong size': (
        write_coco,
        edit(lambda c: c['images'][1].update(width=80)),
        'image has another size than the file says',
    ),
    'model of another number of classes': (
        write_coco,
        lambda _, cfg: cfg.model.bbox_head.update(num_classes=80),
        r'num_classes of the model .*\[80\] and 2',
    ),
    'missing label map': (
        write_labels,
        lambda f, _: (f / 'labels/1.png').unlink(),
        'label map is missing',
    ),
    'label beyond the classes': (write_labels, write_label(7), 'label is beyond the 2 .*: 7 in'),
    'zero means unlabelled, and it is not said': (
        write_labels,
        write_label(2),
        'labels end one beyond the last class',
    ),
    'zero is a class, and is said to mean unlabelled': (
        write_labels,
        set_option(reduce_zero_label=True),
        'reduce_zero_label makes 0 mean unlabelled',
    ),
    'label map of another size': (
        write_labels,
        lambda f, _: cv2.imwrite(str(f / 'labels/1.png'), np.zeros((9, 9), np.uint8)),
        'image and label map differ in size',
    ),
    'label map in colours': (
        write_labels,
        lambda f, _: cv2.imwrite(str(f / 'labels/1.png'), IMAGE),
        'label map has more than one channel',
    ),
    'class without images': (
        write_folders,
        lambda f, _: (f / 'cow').mkdir(),
        r'class has no image .*cow',
    ),
    'more classes than folders': (
        write_folders,
        set_option(metainfo=dict(classes=('cat', 'dog', 'cow'))),
        r'data cannot be read .*number of subfolders \(2\)',
    ),
    'broken image in a folder': (
        write_folders,
        lambda f, _: (f / 'dog/1.jpg').write_bytes(b''),
        'image cannot be read',
    ),
}


@pytest.mark.parametrize(
    'write', [write_coco, write_boxes, write_masks, write_labels, write_folders]
)
def test_sound_data(write: Callable[[Path], Config], tmp_path: Path) -> None:
    cfg = write(tmp_path)
    assert check_data.check(cfg, tmp_path / 'out') == []
    sheet = cv2.imread(str(tmp_path / 'out/train.jpg'))
    assert sheet.shape[1] == 4 * check_data.SIDE
    assert sheet[: check_data.SIDE, : check_data.SIDE].any()


@pytest.mark.parametrize('name', BROKEN)
def test_broken_data(name: str, tmp_path: Path) -> None:
    write, damage, message = BROKEN[name]
    cfg = write(tmp_path)
    damage(tmp_path, cfg)
    lines = check_data.check(cfg, tmp_path / 'out')
    assert any(re.search(message, line) for line in lines), lines
    assert all(line.startswith('train: ') for line in lines)


def test_other_toolkits_are_refused() -> None:
    with pytest.raises(ValueError, match=r'default_scope must be one of .* got .mmrotate.'):
        check_data.check(Config(dict(default_scope='mmrotate')))


def test_16_bits_and_four_channels(tmp_path: Path) -> None:
    """The example for such images reads them whole."""
    from tests.test_configs import read

    cfg = write_labels(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        image = rng.integers(0, 65536, (40, 60, 4), np.uint16)
        tifffile.imwrite(tmp_path / f'images/{i}.tif', image, photometric='rgb')
    own = copy.deepcopy(read('configs/own_data/twins_svt-s_uperhead_rgb-nir-16bit.py'))
    dataset = own.train_dataloader.dataset
    dataset.update(cfg.train_dataloader.dataset | dict(pipeline=dataset.pipeline))
    own.model.decode_head.num_classes = own.model.auxiliary_head.num_classes = 2
    for split in ('val', 'test'):
        own.pop(f'{split}_dataloader')
    assert check_data.check(own, tmp_path / 'out') == []
    dataset = check_data.build_dataset(own, 'train')
    item = dataset[0]
    assert len(item['inputs']) == 4
    assert 1 < float(item['inputs'].abs().max()) < 5  # normalized, not cut to 8 bits
    assert len(item['inputs'].unique()) > 1000
