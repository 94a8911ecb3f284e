import subprocess
import sys

import numpy as np
import pytest

from mmvit_backbones.datasets import (
    SEGMENTATION_CLASSES,
    SEGMENTATION_PALETTE,
    SHAPE_CLASSES,
    STUFF_CLASSES,
    draw_portrait,
    draw_scene,
)


def test_same_seed_gives_same_scene():
    one, two, other = draw_scene(7), draw_scene(7), draw_scene(8)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.label_map, two.label_map)
    assert len(one.instances) == len(two.instances)
    assert (one.image != other.image).any()


@pytest.mark.parametrize('size', [(48, 48), (61, 140), (128, 160)])
@pytest.mark.parametrize('kind', ['usual', 'crowded', 'empty'])
def test_scene_has_image_masks_and_labels_of_the_asked_size(kind, size):
    scene = draw_scene(3, size, kind)
    assert scene.image.shape == (*size, 3)
    assert scene.image.dtype == scene.label_map.dtype == np.uint8
    assert scene.label_map.shape == size
    assert bool(scene.instances) == (kind != 'empty')
    for instance in scene.instances:
        assert instance.mask.shape == size
        assert instance.mask.any()
        assert 0 <= instance.label < len(SHAPE_CLASSES)


def test_label_map_agrees_with_visible_masks():
    unlabelled = 0
    for seed in range(20):
        scene = draw_scene(seed, kind='crowded')
        masks = np.stack([instance.mask for instance in scene.instances])
        assert masks.sum(axis=0).max() == 1, 'visible parts share no pixel'
        expected = np.ones_like(scene.label_map)
        for instance in scene.instances:
            expected[instance.mask] = 1 + len(STUFF_CLASSES) + instance.label
        labelled = scene.label_map > 0
        np.testing.assert_array_equal(scene.label_map[labelled], expected[labelled])
        assert scene.label_map.max() <= len(SEGMENTATION_CLASSES)
        unlabelled += (~labelled).mean() / 20
    assert 0 < unlabelled < 0.1


def test_usual_scenes_have_small_and_larger_shapes_of_all_classes_and_overlaps():
    instances, overlaps = [], 0
    for seed in range(60):
        scene = draw_scene(seed)
        assert 1 <= len(scene.instances) <= 6
        instances += scene.instances
        outlines = [_grow(instance.mask) for instance in scene.instances]
        overlaps += any(
            (outlines[i] & scene.instances[j].mask).any()
            for i in range(len(outlines))
            for j in range(i)
        )
    areas = np.array([instance.mask.sum() for instance in instances])
    assert 0.4 < (areas < 32**2).mean() < 0.9
    assert {instance.label for instance in instances} == set(range(len(SHAPE_CLASSES)))
    assert not any(instance.is_crowd for instance in instances)
    assert overlaps >= 10


def _grow(mask):
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def test_crowded_scene_has_one_group_and_many_shapes():
    scene = draw_scene(0, kind='crowded')
    assert [instance.is_crowd for instance in scene.instances].count(True) == 1
    assert len(scene.instances) >= 7


def test_a_shape_stands_out_from_the_background():
    for seed in range(20):
        scene = draw_scene(seed)
        for instance in scene.instances:
            shape = scene.image[instance.mask].mean(axis=0)
            background = scene.image[scene.label_map == 1].mean(axis=0)
            assert np.linalg.norm(shape - background) > 50


@pytest.mark.parametrize('label', range(len(SHAPE_CLASSES)))
def test_portrait_is_dominated_by_its_class(label):
    for seed in range(5):
        first, *others = draw_portrait(seed, label).instances
        assert first.label == label
        assert first.mask.sum() > 5 * max([other.mask.sum() for other in others], default=0)


def test_ring_has_a_hole_and_circle_has_none():
    holes = {}
    for name in ('ring', 'circle'):
        scene = draw_portrait(2, SHAPE_CLASSES.index(name))
        rows, columns = np.nonzero(scene.instances[0].mask)
        middle = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
        holes[name] = not scene.instances[0].mask[middle]
    assert holes == {'ring': True, 'circle': False}


def test_classes_are_in_folder_order_and_have_a_colour_each():
    assert list(SHAPE_CLASSES) == sorted(SHAPE_CLASSES)
    assert len(set(SEGMENTATION_PALETTE)) == len(SEGMENTATION_CLASSES)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'seed': -1}, 'seed must be at least 0, got -1'),
        ({'seed': 0, 'size': (47, 100)}, r'size must be .* from 48 px, got \(47, 100\)'),
        ({'seed': 0, 'size': (100,)}, 'size must be a height and a width'),
        ({'seed': 0, 'kind': 'full'}, "kind must be one of .*, got 'full'"),
    ],
)
def test_bad_scene_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(**arguments)


@pytest.mark.parametrize('label', [-1, len(SHAPE_CLASSES)])
def test_bad_portrait_label_is_refused(label):
    with pytest.raises(ValueError, match=f'label must be from 0 to 3, got {label}'):
        draw_portrait(0, label)


def test_import_needs_no_toolkit():
    code = (
        'import sys, mmvit_backbones; before = set(sys.modules); import mmvit_backbones.datasets;'
        'print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, text=True)
    loaded = set(run.stdout.split())
    assert not loaded & {'mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'pycocotools', 'rich', 'cv2'}
