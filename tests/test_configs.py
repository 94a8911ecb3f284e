"""Configs come from the tables, hold the recorded recipes, and train and predict in small."""

from __future__ import annotations

import ast
import functools
import json
import lzma
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper

from mmvit_backbones import list_pretrained
from mmvit_backbones.backbones import twins_svt, xcit
from tests.utils import load_tool

pytestmark = [
    # mmseg warns of its own default; the published numbers were reached with it.
    pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore`` is False:UserWarning'),
    # mmdet's RetinaHead and ATSSHead about themselves.
    pytest.mark.filterwarnings('ignore:DeprecationWarning. `num_anchors`:UserWarning'),
    # mmdet's FCNMaskHead, of averaged masks.
    pytest.mark.filterwarnings('ignore:To copy construct from a tensor:UserWarning'),
    # MMEngine leaves a temporary file of each config to the garbage collector.
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_]*/*.py')
)  # fmt: skip
make_configs = load_tool('make_configs')


@functools.cache
def made() -> tuple[dict[str, Any], dict[str, str]]:
    """All configs by their paths, and the files that the tables ask for."""
    leaves, files = make_configs.make(count=False)
    return {leaf.path: leaf for leaf in leaves}, files


def read(path: str) -> Config:
    return made()[0][path].config


def header(path: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / path).read_text())) or ''


def test_files_are_those_of_the_tables(tmp_path: Path) -> None:
    _, files = made()
    assert make_configs.stale(files) == []
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    shutil.copy(ROOT / 'model-index.yml', tmp_path)
    leaf = 'configs/upernet/twins_svt-s_uperhead_8xb2-160k_ade20k-512x512.py'
    for old, new in (('drop_path_rate=0.2', 'drop_path_rate=0.1'), ('mIoU 46.2', 'mIoU 47.2')):
        (tmp_path / leaf).write_text((ROOT / leaf).read_text().replace(old, new))
        assert make_configs.stale(files, tmp_path) == [leaf]
    shutil.copy(ROOT / leaf, tmp_path / 'configs/upernet/mine.py')
    assert make_configs.stale(files, tmp_path) == [leaf, 'configs/upernet/mine.py (no row)']


def test_a_row_without_a_field_is_named() -> None:
    leaf = make_configs.Leaf('upernet', dict(size='xcit-l24-p8', number='mIoU $miou', file='x'))
    with pytest.raises(
        ValueError, match=r"upernet/recipes.yml: row .*xcit-l24-p8.* no field 'miou'"
    ):
        leaf.text('number')


def test_parameters_are_counted_right() -> None:
    """One size of each family, since its rows differ in the backbone alone."""
    seen = set()
    for leaf in made()[0].values():
        family = (leaf.fields['file'], leaf.fields['network'])
        if family not in seen and leaf.config.default_scope != 'mmrotate':
            seen.add(family)
            model = make_configs.build(leaf.config)
            assert sum(p.numel() for p in model.parameters()) == leaf.parameters, leaf.path


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/_base_/backbones').glob('*.py')), ids=str)
def test_backbone_bases_name_channels_and_depth(path: Path) -> None:
    base = Config.fromfile(path)
    network = twins_svt if 'Twins' in base.backbone.type else xcit
    arch = base.backbone.arch
    dims = (network.ARCHS[arch] if isinstance(arch, str) else ConfigDict(arch)).embed_dims
    assert base.channels == (list(dims) if network is twins_svt else [dims] * 4)
    if network is xcit:
        assert base.depth == (network.ARCHS[arch] if isinstance(arch, str) else arch).depth


@pytest.mark.parametrize('path', CONFIGS)
def test_bases(path: str) -> None:
    """One backbone, and nothing of another leaf."""
    text = (ROOT / path).read_text()
    bases = re.findall(r"'(\S+\.py)',", text.partition('_base_ = [')[2].partition(']')[0])
    assert all(base.startswith('../_base_/') for base in bases)
    assert sum('/backbones/' in base for base in bases) == 1


@pytest.mark.parametrize('path', CONFIGS)
def test_runtime(path: str) -> None:
    cfg = read(path)
    assert cfg.default_hooks.checkpoint.max_keep_ckpts >= 2
    assert cfg.default_hooks.visualization
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0
    assert not cfg.get('find_unused_parameters', False)


@pytest.mark.parametrize('path', CONFIGS)
def test_header(path: str) -> None:
    """It says what the config is; the starting weights are public and fetched by name."""
    fields = dict(line.split(': ', 1) for line in header(path).splitlines() if ': ' in line)
    assert {'Paper', 'Command', 'Batch', 'Weights'} <= fields.keys()
    assert fields['Status'] in ('untested', 'converted weights verified', 'reproduced')
    assert path in fields['Command']
    model = read(path).model
    starts = [model.get('init_cfg'), model.get('backbone', {}).get('init_cfg')]
    names = [start.checkpoint for start in starts if start]
    assert all(name in list_pretrained() for name in names)
    assert ('none' in fields['Weights']) == (not names)
    assert all(name in fields['Weights'] for name in names)


# What was changed on purpose since the recipes were recorded: names for numbers, defaults said or
# left out. Key, recorded, now.
MEANT = [
    (
        r'model(\.student)?\.neck\.(in_channels|num_heads|layer_scale|tokens_norm|num_layers)',
        ...,
        None,
    ),
    (r'model(\.student)?\.neck\.arch.*', None, ...),
    (r'model(\.student)?\.backbone\.norm_cfg\.type', None, 'BN'),
    (r'model(\.student)?\.backbone\.init_cfg', None, None),
    (r'model\.backbone\.out_indices', [0, 1, 2, 3], None),
    (r'model\.backbone\.drop_path_rate', 0.0, None),
    (r'model\.backbone\.arch\.cls_layers', None, 1),
    (r'backbone\..*|channels|depth', None, ...),
    (r'tta_(model|pipeline).*', None, ...),
]
MEANT_OF_TOYS = [
    # mmseg 1.2.2 fails at weights of classes where pixels are ignored.
    (r'class_weight|losses|model\.\w+_head\.loss_decode.*', ..., ...),
    # Longer schedules, and square anchors for shapes that are as wide as high.
    (r'param_scheduler|train_cfg\.(max_epochs|max_iters|val_interval)', ..., ...),
    (r'model\.bbox_head\.anchor_generator\.ratios', [0.5, 1.0, 2.0], [1.0]),
    # UperNet learns at half the rate, see schedules/shapes_segmentation_long.py.
    (r'optim_wrapper\.optimizer\.lr', 1e-3, 5e-4),
]
RECORDED = json.loads(lzma.decompress((ROOT / 'tests/recorded/recipes.json.xz').read_bytes()))


def flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flat(item, f'{key}.{name}' if key else name)
    else:
        yield key, plain(value)


def plain(value: Any) -> Any:
    """With lists for tuples, as in JSON."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize('path', RECORDED)
def test_resolves_to_the_recorded_recipe(path: str) -> None:
    before, now = dict(flat(RECORDED[path])), dict(flat(read(path)._cfg_dict.to_dict()))
    changes = {
        key: (before.get(key), now.get(key))
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
    }
    meant = [*MEANT, *MEANT_OF_TOYS] if '/shapes/' in path else MEANT
    for key, (old, new) in changes.items():
        assert any(
            re.fullmatch(pattern, key) and was in (old, ...) and is_ in (new, ...)
            for pattern, was, is_ in meant
        ), f'{key}: {old!r} before, {new!r} now'


# In millions, by the papers. That of Twins (Tables 2 to 4) counts the ImageNet classifier too; its
# number for Mask R-CNN on Twins-SVT-S is 0.2 less than the parts are together.
@pytest.mark.parametrize(
    ('name', 'classifier', 'reported', 'tolerance'),
    [
        ('retinanet_twins-svt-s_fpn_1x_coco', 513, 34.3, 0.05),
        ('retinanet_twins-svt-b_fpn_1x_coco', 769, 67.0, 0.05),
        ('retinanet_twins-svt-l_fpn_1x_coco', 1025, 110.9, 0.05),
        ('mask-rcnn_twins-svt-s_fpn_1x_coco', 513, 44.0, 0.25),
        ('mask-rcnn_twins-svt-b_fpn_1x_coco', 769, 76.3, 0.05),
        ('mask-rcnn_twins-svt-l_fpn_ms-crop-3x_coco', 1025, 119.7, 0.05),
        ('twins_svt-s_uperhead_8xb2-160k_ade20k-512x512', 513, 54.4, 0.05),
        ('twins_svt-b_uperhead_8xb2-160k_ade20k-512x512', 769, 88.5, 0.05),
        ('twins_svt-l_uperhead_8xb2-160k_ade20k-512x512', 1025, 133, 1),
        ('twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512', 513, 28.3, 0.05),
        ('twins_svt-b_fpn_fpnhead_8xb4-80k_ade20k-512x512', 769, 60.4, 0.05),
        ('twins_svt-l_fpn_fpnhead_8xb4-80k_ade20k-512x512', 1025, 103.7, 0.1),
        ('mask-rcnn_xcit-s12-p16_fpn_ms-crop-3x_coco', 0, 44.3, 0.1),
        ('mask-rcnn_xcit-m24-p16_fpn_ms-crop-3x_coco', 0, 101.1, 0.1),
        # By timm and the authors.
        ('twins-svt-small_8xb128_in1k', 0, 24.06, 0.006),
        ('twins-svt-base_8xb128_in1k', 0, 56.07, 0.006),
        ('twins-svt-large_16xb64_in1k', 0, 99.27, 0.006),
        ('xcit-nano-12-p16_8xb128_in1k', 0, 3.05, 0.006),
        ('xcit-tiny-24-p8_8xb128_in1k', 0, 12.11, 0.006),
        ('xcit-small-12-p16_8xb128_in1k-distilled', 0, 26.25, 0.006),
        ('xcit-medium-24-p16_8xb64_in1k-384px', 0, 84.40, 0.006),
        ('xcit-large-24-p8_8xb128_in1k', 0, 188.93, 0.006),
    ],
)
def test_parameters_as_reported(
    name: str, classifier: int, reported: float, tolerance: float
) -> None:
    (leaf,) = (leaf for path, leaf in made()[0].items() if Path(path).stem == name)
    assert (leaf.parameters + classifier * 1000) / 1e6 == pytest.approx(reported, abs=tolerance)


def groups(path: str) -> dict[str, dict[str, Any]]:
    """The optimizer's group of every parameter, by its name."""
    model = make_configs.build(read(path))
    optimizer = build_optim_wrapper(model, read(path).optim_wrapper.copy()).optimizer
    by_id = {id(p): group for group in optimizer.param_groups for p in group['params']}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


# Names that have no weight decay, of a config; they are those of the authors' code.
@pytest.mark.parametrize(
    ('path', 'free'),
    [
        ('retinanet/retinanet_twins-svt-s_fpn_1x_coco', r''),
        ('upernet/twins_svt-s_uperhead_8xb2-160k_ade20k-512x512', r'.*(pos_block|norm).*'),
        ('upernet/xcit-t12-p16_uperhead_8xb2-160k_ade20k-512x512', r'.*norm.*'),
        (
            'imagenet/xcit-nano-12-p16_8xb128_in1k',
            r'.*(norm|bias|\.bn\.|gamma).*|neck\.cls_token|.*patch_embed\.proj\.\d\.1\..*',
        ),
    ],
)
def test_parameters_without_weight_decay(path: str, free: str) -> None:
    for name, group in groups(f'configs/{path}.py').items():
        assert (group['weight_decay'] == 0) == bool(re.fullmatch(free, name)), name


@pytest.mark.parametrize(
    ('path', 'rate', 'depths'),
    [
        ('cascade_mask_rcnn/cascade-mask-rcnn_twins-svt-s_fpn_ms-crop-3x_coco', 0.9, 20),
        ('rtmdet/rtmdet_xcit-s12-p8_8xb32-100e_coco', 0.85, 14),
        ('imagenet/xcit-small-12-p16_1xb64_folders', 0.75, 14),
    ],
)
def test_rates_by_layer(path: str, rate: float, depths: int) -> None:
    scales = {group['lr_scale'] for group in groups(f'configs/{path}.py').values()}
    assert scales == {rate**i for i in range(depths)}


def test_distilled_differs_in_the_teacher_alone() -> None:
    plain_, distilled = (
        read(f'configs/imagenet/xcit-small-12-p16_8xb128_in1k{end}.py')
        for end in ('', '-distilled')
    )
    assert distilled.model.student == plain_.model
    assert {key for key in plain_ if plain_[key] != distilled[key]} == {'model'}


def test_shapes_configs_name_the_classes_of_the_data() -> None:
    from mmvit_backbones.datasets import SEGMENTATION_CLASSES, SEGMENTATION_PALETTE, SHAPE_CLASSES

    stuff = len(SEGMENTATION_CLASSES) - len(SHAPE_CLASSES)
    for path in (path for path in CONFIGS if '/shapes/' in path and '_cls_' not in path):
        cfg = read(path)
        metainfo = cfg.train_dataloader.dataset.metainfo
        is_detector = cfg.default_scope == 'mmdet'
        assert metainfo.classes == (SHAPE_CLASSES if is_detector else SEGMENTATION_CLASSES)
        palette = SEGMENTATION_PALETTE[stuff if is_detector else 0 :]
        assert plain(metainfo.palette) == plain(palette)
        assert num_classes(cfg.model) == {len(metainfo.classes)}


def num_classes(config: Any) -> set[int]:
    """All numbers of classes in a model."""
    counts = load_tool('check_data').find_keys(config, 'num_classes')
    return {count for count in counts if isinstance(count, int)}


@pytest.mark.parametrize('path', [path for path in CONFIGS if '/own_data/' in path])
def test_own_data_has_one_list_of_classes(path: str) -> None:
    cfg = read(path)
    assert num_classes(cfg.model) == {len(cfg.classes)}
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.metainfo.classes == cfg.classes
