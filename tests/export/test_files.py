"""Exported files compute what the model computes, at every size."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmvit_backbones import TwinsSVT, XCiT, kernels
from mmvit_backbones.export import (
    FORMATS,
    capture,
    export_model,
    format_checks,
    load_exported,
    source_from_config,
    verify,
)
from mmvit_backbones.export.adaptive_pooling import AdaptiveAveragePooling
from tests.models import SMALL, SMALL_TWINS, XCIT
from tests.utils import randomize

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(1, 64, 96), (3, 97, 131), (1, 33, 64), (3, 32, 32), (1, 40, 200)]
# At 32 px its last map is one token, as in the full-size networks.
TWINS_TO_ONE_TOKEN = dict(SMALL_TWINS, stages=('LG', 'G'), patch_sizes=(4, 8), sr_ratios=(8, 1))
MODELS = {
    **SMALL,
    'twins-to-one-token': lambda: TwinsSVT(TWINS_TO_ONE_TOKEN, out_indices=(0, 1)),
    'xcit-pyramid': lambda: XCiT(dict(XCIT, depth=4), out_indices=(0, 1, 2, 3)),
}
# Of the exporters: copies of onnxscript's and of PyTorch's own old names.
pytestmark = [
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]


def largest_error(model: nn.Module, path: Path, sizes: list[tuple[int, int, int]] = SIZES) -> float:
    checks = verify(model, path, sizes, repeats=0)
    print(format_checks(checks))
    return max(check.error / max(1.0, check.largest) for check in checks)


@pytest.mark.parametrize(
    ('format', 'name'),
    [
        ('onnx', 'twins-to-one-token'),
        ('onnx', 'twins-vit-pytorch'),
        ('onnx', 'xcit-vit-pytorch'),
        ('onnx', 'xcit-pyramid'),
        ('torch', 'twins-to-one-token'),
        ('torch', 'xcit-vit-pytorch'),
        ('aoti', 'twins-to-one-token'),
        ('openvino', 'twins-to-one-token'),
        ('openvino', 'xcit-pyramid'),
    ],
)
def test_file_computes_the_same_at_every_size(format: str, name: str, tmp_path: Path) -> None:
    if format == 'openvino':
        pytest.importorskip('openvino')
    model = randomize(MODELS[name]()).eval()
    path = tmp_path / f'model{FORMATS[format].suffix}'
    is_static = format == 'aoti'
    export_model(model, path, format, size=(64, 96), dynamic=not is_static)
    sizes = [(1, 64, 96)] if is_static else SIZES
    assert largest_error(model, path, sizes) <= 1e-4


def count_ops(model: nn.Module, size: tuple[int, int], **options: object) -> dict[str, int]:
    program = capture(model, torch.zeros(2, 3, *size), **options)
    names = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert not any('mmvit' in name for name in names)
    return {name: names.count(name) for name in names}


def test_attention_form_follows_the_size() -> None:
    """The Gram form never projects tokens to queries, keys and values."""
    model = randomize(SMALL['xcit']()).eval()
    few, many = count_ops(model, (32, 32)), count_ops(model, (128, 128))
    assert few['aten.linear.default'] == 4
    assert many['aten.linear.default'] == 2


def test_explicit_attention() -> None:
    model = randomize(SMALL['twins']()).eval()
    fused = count_ops(model, (64, 64))
    explicit = count_ops(model, (64, 64), attention='explicit')
    name = 'aten.scaled_dot_product_attention.default'
    assert fused[name] == 4
    assert name not in explicit
    assert explicit['aten.softmax.int'] == 4
    with pytest.raises(ValueError, match=r"attention must be one of .* got 'flash'"):
        capture(model, torch.zeros(2, 3, 64, 64), attention='flash')


@pytest.mark.parametrize('bins', [(1, 1), (2, 3), (6, 6)])
def test_adaptive_pooling(bins: tuple[int, int]) -> None:
    for size in [(12, 6), (7, 5), (1, 2)]:
        x = torch.randn(2, 3, *size)
        expected = nn.AdaptiveAvgPool2d(bins)(x)
        torch.testing.assert_close(AdaptiveAveragePooling(bins)(x), expected)


def test_wrong_arguments(tmp_path: Path) -> None:
    model = SMALL['xcit']()
    with pytest.raises(ValueError, match=r"format must be one of .* got 'tflite'"):
        export_model(model, tmp_path / 'a.onnx', 'tflite')
    with pytest.raises(ValueError, match=r"path must end in '\.pt2'"):
        export_model(model, tmp_path / 'a.onnx', 'torch')
    with pytest.raises(ValueError, match=r'size must be at least 32 px .* got \(16, 64\)'):
        export_model(model, tmp_path / 'a.pt2', 'torch', size=(16, 64))
    with pytest.raises(ValueError, match=r'model must be a backbone or classifier .* got Linear'):
        export_model(nn.Linear(1, 1), tmp_path / 'a.pt2', 'torch')
    with pytest.raises(FileNotFoundError, match='path must be an exported file'):
        load_exported(tmp_path / 'none.onnx')
    mask_rcnn = ROOT / 'configs/shapes/mask-rcnn_xcit-toy_fpn_shapes.py'
    with pytest.raises(ValueError, match='detector of one stage, got MaskRCNN'):
        source_from_config(str(mask_rcnn))
    backbone = source_from_config(str(mask_rcnn), backbone_only=True)
    assert backbone.metadata['strides'] == [4, 8, 16, 32]


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mmvit_backbones.export.formats.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='needs onnx, onnxscript, onnxruntime'):
        export_model(SMALL['xcit'](), tmp_path / 'a.onnx')


def test_tool_and_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = 'tool xcit_nano_12_p16 a.pt2 --num-classes 3 --static --format torch --size 64x64'
    monkeypatch.setattr(sys, 'argv', [*arguments.split(), '--tolerance', '0'])
    with pytest.raises(SystemExit, match='error: the file differs from the model by more than 0'):
        runpy.run_path(str(ROOT / 'tools/export.py'), run_name='__main__')
    printed = capsys.readouterr().out
    assert 'wrote a.pt2, ' in printed
    assert '| 1 of 64 x 64 | ' in printed
    told = json.loads(Path('a.pt2.json').read_text())
    assert told['model'] == 'xcit_nano_12_p16'
    assert told['task'] == 'classification'
    assert told['input']['shape'] == [1, 3, 64, 64]
    assert told['outputs'] == ['logits']
    assert told['preprocessing']['mean'][0] == pytest.approx(123.675)


def test_kernels_stay_as_they_were() -> None:
    with kernels.use('reference'):
        before = kernels.switch.get_dispatcher()
        capture(SMALL['xcit'](), torch.zeros(2, 3, 64, 64))
        assert kernels.switch.get_dispatcher() is before
