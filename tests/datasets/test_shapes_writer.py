import hashlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from mmvit_backbones.datasets import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    SHAPE_CLASSES,
    shapes_writer,
    write_shapes,
)

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'make_shapes.py'
SMALL = dict(train=16, val=12, size=(64, 80))


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    assert write_shapes(folder, **SMALL)
    return folder


def test_same_arguments_give_same_bytes_and_another_seed_others(root, tmp_path):
    write_shapes(tmp_path / 'again', **SMALL)
    write_shapes(tmp_path / 'other', **SMALL, seed=1)
    first, again, other = digests(root), digests(tmp_path / 'again'), digests(tmp_path / 'other')
    assert again == first
    assert other.keys() - first.keys() == set()
    assert all(other[name] != first[name] for name in first if name.endswith(('jpg', 'JPEG')))


def test_no_scene_is_in_two_splits_or_twice(root):
    pictures = [value for name, value in digests(root / 'coco').items() if name.endswith('jpg')]
    assert len(set(pictures)) == len(pictures) == SMALL['train'] + SMALL['val']
    seeds = {
        shapes_writer.scene_seed(seed, split, index)
        for seed in (0, 1, 2**32 - 1)
        for split in ('train', 'val')
        for index in (0, 1, 2**31 - 1)
    }
    assert len(seeds) == 3 * 2 * 3


def test_coco_file_agrees_with_its_masks(root, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(root / 'coco/annotations/instances_train.json'))
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == [*SHAPE_CLASSES]
    assert len(coco.imgs) == SMALL['train']
    for image in coco.imgs.values():
        with Image.open(root / 'coco/train' / image['file_name']) as picture:
            assert picture.size == (image['width'], image['height'])
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation['bbox']
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation['area'] == mask.sum()
    assert 'index created' in capsys.readouterr().out


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_has_empty_and_crowded_images_small_shapes_and_several_sizes(root, split):
    content = json.loads((root / f'coco/annotations/instances_{split}.json').read_text())
    counts = {image['id']: 0 for image in content['images']}
    for annotation in content['annotations']:
        counts[annotation['image_id']] += 1
    assert [number for number, count in counts.items() if count == 0] == [6]
    assert counts[11] >= 7
    assert {a['image_id'] for a in content['annotations'] if a['iscrowd']} == {11}
    assert any(annotation['area'] < 32**2 for annotation in content['annotations'])
    sizes = {(image['height'], image['width']) for image in content['images']}
    assert len(sizes) > 6
    assert {height > width for height, width in sizes} == {True, False}
    assert all(max(size) <= 80 and min(size) >= 51 for size in sizes)


def test_mask_survives_the_run_length_code():
    from pycocotools import mask as coco_mask

    for mask in np.random.default_rng(0).uniform(size=(20, 9, 7)) < 0.5:
        runs = shapes_writer._encode_runs(mask)
        decoded = coco_mask.decode(coco_mask.frPyObjects(runs, 9, 7))
        np.testing.assert_array_equal(decoded, mask)


@pytest.fixture
def scope(request):
    """The toolkit in which unscoped names are looked up, only for this test."""
    with DefaultScope.overwrite_default_scope(request.param):
        yield request.param


@pytest.mark.parametrize('scope', ['mmdet'], indirect=True)
def test_mmdet_reads_the_coco_folder(root, scope):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = CocoDataset(
        data_root=str(root / 'coco'),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train'),
        metainfo=dict(classes=SHAPE_CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
        test_mode=True,
    )
    assert len(dataset) == SMALL['train']
    assert len(dataset[5]['data_samples'].gt_instances) == 0
    crowded = dataset[10]['data_samples']
    assert len(crowded.ignored_instances) == 1
    assert len(crowded.gt_instances) >= 6
    for x1, y1, x2, y2, mask in zip(
        *crowded.gt_instances.bboxes.tensor.int().T, crowded.gt_instances.masks.masks, strict=True
    ):
        inside = mask[y1:y2, x1:x2]
        assert inside.sum() == mask.sum() > 0
        edges = inside[0], inside[-1], inside[:, 0], inside[:, -1]
        assert all(edge.any() for edge in edges)


@pytest.mark.parametrize('scope', ['mmseg'], indirect=True)
def test_mmseg_reads_the_ade_folder(root, scope):
    from mmseg.datasets import BaseSegDataset
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = BaseSegDataset(
        data_root=str(root / 'ade'),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=dict(classes=SEGMENTATION_CLASSES, palette=[*map(list, SEGMENTATION_PALETTE)]),
        reduce_zero_label=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    assert len(dataset) == SMALL['val']
    values = set()
    for sample in dataset:
        labels = sample['data_samples'].gt_sem_seg.data
        assert labels.shape[1:] == sample['inputs'].shape[1:]
        values |= set(labels.unique().tolist())
    assert values == {*range(len(SEGMENTATION_CLASSES)), 255}
    assert set(dataset[5]['data_samples'].gt_sem_seg.data.unique().tolist()) == {0}


@pytest.mark.parametrize('scope', ['mmpretrain'], indirect=True)
def test_mmpretrain_reads_the_imagenet_folder(root, scope):
    from mmpretrain.datasets import CustomDataset
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = CustomDataset(
        data_root=str(root / 'imagenet'),
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='PackInputs'),
        ],
    )
    assert dataset.CLASSES == SHAPE_CLASSES
    labels = [sample['data_samples'].gt_label.item() for sample in dataset]
    assert np.bincount(labels).tolist() == [SMALL['train'] // len(SHAPE_CLASSES)] * 4


def test_only_the_asked_formats_are_written(tmp_path):
    write_shapes(tmp_path, formats=['imagenet'], **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['imagenet', 'shapes.json']


def test_complete_data_is_left_alone_and_damaged_or_other_data_replaced(tmp_path):
    options = dict(formats=['ade', 'coco'], train=1, val=1, size=(64, 64))
    assert write_shapes(tmp_path, **options)
    assert not write_shapes(tmp_path, **{**options, 'formats': ['coco', 'ade']})
    complete = digests(tmp_path)
    next(tmp_path.rglob('*.png')).unlink()
    assert write_shapes(tmp_path, **options)
    assert digests(tmp_path) == complete
    assert write_shapes(tmp_path, **{**options, 'formats': ['coco']})
    assert not (tmp_path / 'ade').exists()


@pytest.mark.parametrize('name', ['notes.txt', 'coco/train/mine.jpg', 'shapes.json'])
def test_foreign_files_are_never_replaced(tmp_path, name):
    if name.startswith('coco'):
        write_shapes(tmp_path, formats=['coco'], train=1, val=1)
    (tmp_path / name).write_text('{"mine": 1}')
    before = digests(tmp_path)
    with pytest.raises(FileExistsError, match=f'such as {name!r}'):
        write_shapes(tmp_path, formats=['coco'], train=2, val=1)
    assert digests(tmp_path) == before


def test_a_file_as_target_is_refused(tmp_path):
    target = tmp_path / 'file'
    target.write_text('')
    with pytest.raises(FileExistsError, match='is a file'):
        write_shapes(target, train=1, val=1)


def test_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes_writer, 'draw_portrait', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / 'data', train=1, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(formats=['voc']), r"formats must be some of .*, got \['voc'\]"),
        (dict(formats=[]), 'formats must be some of'),
        (dict(formats='coco'), "formats must be some of .*, got 'coco'"),
        (dict(train=0), 'train must be from 1 to .* images, got 0'),
        (dict(val=-3), 'val must be from 1 to .* images, got -3'),
        (dict(size=(59, 80)), r'size must be .* from 60 px, got \(59, 80\)'),
        (dict(seed=-1), 'seed must be from 0 to 4294967295, got -1'),
        (dict(seed=2**32), 'seed must be from 0 to'),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_shapes(tmp_path / 'data', **arguments)
    assert list(tmp_path.iterdir()) == []


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['make_shapes.py', *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_writes_what_the_function_writes(root, tmp_path, monkeypatch, capsys):
    arguments = [tmp_path / 'new', '--train', 16, '--val', 12, '--size', '64x80']
    run_tool(monkeypatch, *arguments)
    assert digests(tmp_path / 'new') == digests(root)
    printed = capsys.readouterr().out
    assert 'coco train' in printed
    assert f'wrote {tmp_path / "new"}' in printed.replace('\n', '')
    run_tool(monkeypatch, *arguments)
    assert 'found the same data' in capsys.readouterr().out


@pytest.mark.parametrize('size', ['128', '128x', 'axb', '-1x9'])
def test_tool_explains_a_bad_size(tmp_path, monkeypatch, capsys, size):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, tmp_path / 'new', f'--size={size}')
    assert 'expected HxW, such as 128x160' in capsys.readouterr().err


def test_tool_ends_with_a_message_for_a_foreign_folder(tmp_path, monkeypatch):
    (tmp_path / 'mine.txt').write_text('')
    with pytest.raises(SystemExit, match=r"make_shapes: .* such as 'mine\.txt'"):
        run_tool(monkeypatch, tmp_path, '--train', 1, '--val', 1)
