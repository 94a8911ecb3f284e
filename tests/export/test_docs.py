"""The examples of docs/export.md give what the toolkits give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from mmvit_backbones.datasets.shapes import draw_scene
from mmvit_backbones.export import Source, export_model, source_from_config, verify
from tests.utils import randomize

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/export.md').read_text(encoding='utf-8')
CODE = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
pytestmark = [
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Image.Image]:
    """A scene in image.png of the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_scene(3, (128, 160)).image).save('image.png')
    scope = DefaultScope.get_current_instance()
    yield Image.open('image.png')
    if scope is None:  # a config's model has set one
        DefaultScope._instance_dict.clear()


def export_config(name: str, path: str) -> Source:
    source = source_from_config(str(ROOT / 'configs/shapes' / f'{name}.py'))
    randomize(source.model)
    export_model(source, path, size=(128, 160))
    return source


def run(*headings: str) -> dict[str, Any]:
    """Run the blocks of the page that hold these words, in one namespace."""
    scope: dict[str, Any] = {}
    for heading in ('def to_input', *headings):
        (block,) = [code for code in CODE if heading in code]
        exec(block, scope)
    return scope


def check_sizes(source: Source, path: str) -> None:
    checks = verify(source.model, path, [(1, 128, 160), (3, 96, 224)], repeats=0)
    assert max(c.error / max(1.0, c.largest) for c in checks) <= 1e-4


def to_batch(image: Image.Image, source: Source) -> torch.Tensor:
    how = source.metadata['preprocessing']
    pixels = torch.from_numpy(np.asarray(image, np.float32))
    return ((pixels - torch.tensor(how['mean'])) / torch.tensor(how['std'])).permute(2, 0, 1)[None]


def test_classify_and_quantize(image: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    source = export_config('xcit-toy_cls_shapes', 'classifier.onnx')
    check_sizes(source, 'classifier.onnx')
    scope = run('shares')
    with torch.no_grad():
        small = image.resize((64, 64), Image.Resampling.BILINEAR)
        expected = source.model(to_batch(small, source))
    np.testing.assert_allclose(scope['shares'], expected.softmax(-1), atol=1e-5)
    assert capsys.readouterr().out.splitlines()[-1].split()[0] in source.metadata['classes']

    Path('calibration/circle').mkdir(parents=True)
    for seed in range(4):
        drawn = Image.fromarray(draw_scene(seed, (128, 160)).image)
        drawn.save(f'calibration/circle/{seed}.png')
    scope = run('quantize_static')
    session = scope['onnxruntime'].InferenceSession('classifier-int8.onnx')
    (found,) = session.run(None, {'images': to_batch(small, source).numpy()})
    error = np.abs(found - expected.numpy()).max() / expected.abs().max().item()
    assert 0 < error < 0.2
    assert Path('classifier-int8.onnx').stat().st_size < Path('classifier.onnx').stat().st_size / 2


def test_detect(image: Image.Image) -> None:
    from mmdet.structures import DetDataSample

    source = export_config('retinanet_twins-svt-toy_fpn_shapes', 'detector.onnx')
    check_sizes(source, 'detector.onnx')
    scope = run('def decode')
    boxes, scores, labels = scope['detect'](scope['session'], scope['description'], image)
    meta = dict(img_shape=(128, 160), ori_shape=(128, 160), scale_factor=(1.0, 1.0))
    with torch.no_grad():
        (sample,) = source.model.model(
            to_batch(image, source), [DetDataSample(metainfo=meta)], mode='predict'
        )
    expected = sample.pred_instances
    assert len(boxes) == len(expected) > 50
    # Overlaps at the threshold may go either way: nearly all boxes are the same.
    close = np.isclose(boxes[:, None], expected.bboxes, atol=0.01).all(2)
    close &= labels[:, None] == expected.labels.numpy()
    close &= np.isclose(scores[:, None], expected.scores, atol=1e-4)
    assert close.any(1).mean() > 0.95


def test_segment(image: Image.Image) -> None:
    from mmseg.structures import SegDataSample

    source = export_config('xcit-toy_uperhead_shapes', 'segmentor.onnx')
    check_sizes(source, 'segmentor.onnx')
    openvino = ['import openvino'] if find_spec('openvino') else []
    scope = run("load('segmentor.onnx')", *openvino)
    meta = dict(img_shape=(128, 160), ori_shape=(128, 160), pad_shape=(128, 160))
    with torch.no_grad():
        (sample,) = source.model.model(
            to_batch(image, source), [SegDataSample(metainfo=meta)], mode='predict'
        )
    expected = sample.pred_sem_seg.data[0].numpy()
    assert (scope['labels'] == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1
    if 'found' in scope:
        np.testing.assert_allclose(scope['found'], scope['logits'], atol=1e-3)
