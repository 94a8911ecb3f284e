"""Curves, predictions, images and the command line."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image

from mmvit_backbones import visualization as vis
from mmvit_backbones.visualization.curves import smoothed

ROOT = Path(__file__).resolve().parents[2]


def write_log(folder: Path, run: str, records: list[dict]) -> None:
    path = folder / run / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    folder = tmp_path / 'run'
    write_log(folder, '20260101_000000', [dict(loss=float(9 - i), step=i) for i in range(6)])
    resumed = [dict(loss=1.0, step=5), dict(loss=0.5, step=6), dict(mIoU=40.0, step=6)]
    write_log(folder, '20260102_000000', [*resumed, dict(mIoU=42.5, step=9)])
    return folder


def test_a_run_from_the_start_replaces_earlier_ones(work_dir: Path) -> None:
    write_log(work_dir, '20260103_000000', [dict(loss=7.0, step=0), dict(loss=6.0, step=1)])
    assert vis.read_scalars(work_dir) == {'loss': [(0, 7.0), (1, 6.0)]}


def test_a_resumed_run_goes_on(work_dir: Path) -> None:
    scalars = vis.read_scalars(work_dir)
    expected = [(0, 9.0), (1, 8.0), (2, 7.0), (3, 6.0), (4, 5.0), (5, 1.0), (6, 0.5)]
    assert scalars['loss'] == expected
    assert scalars['mIoU'] == [(6, 40.0), (9, 42.5)]


def test_curves(work_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / 'other'
    write_log(other, '1', [dict(loss=2.0, step=1)])
    figure = vis.draw_curves([work_dir, other])
    assert [axis.get_title() for axis in figure.axes] == ['loss', 'mIoU']
    assert [text.get_text() for text in figure.axes[1].texts] == ['42.5']
    assert len(figure.legends[0].get_texts()) == 2
    with pytest.raises(ValueError, match=r"one of \['loss', 'mIoU'\], got \['AP'\]"):
        vis.draw_curves([work_dir], ['AP'])
    with pytest.raises(FileNotFoundError, match='must hold logs'):
        vis.draw_curves([tmp_path])


def test_smoothing_keeps_lines_and_ends() -> None:
    line = np.arange(200.0)
    np.testing.assert_allclose(smoothed(line), line)
    assert smoothed(np.tile([0.0, 1.0], 100))[50:150].std() < 0.1


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / 'image.png'
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(path)
    return str(path)


def test_boxes_below_the_score_are_left_out(image: str) -> None:
    box = torch.tensor([[5.0, 5.0, 20.0, 30.0]])
    truth = InstanceData(bboxes=box, labels=torch.tensor([1]))
    found = InstanceData(
        bboxes=box.repeat(2, 1), labels=torch.tensor([1, 0]), scores=torch.tensor([0.9, 0.2])
    )
    sample = BaseDataElement(metainfo=dict(img_path=image))
    sample.set_data(dict(gt_instances=truth, pred_instances=found))
    figure = vis.draw_predictions([sample], ['cat', 'dog'])
    truth_axis, found_axis = figure.axes
    assert len(truth_axis.patches) == len(found_axis.patches) == 1
    assert [text.get_text() for text in found_axis.texts] == ['0.90']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['dog']


def test_segments_count_right_pixels_without_the_ignored(image: str) -> None:
    truth = torch.zeros(1, 40, 60, dtype=torch.long)
    found = truth.clone()
    found[:, :, :15] = 2
    truth[:, 20:] = 255
    sample = BaseDataElement(metainfo=dict(img_path=image))
    sample.set_data(dict(gt_sem_seg=PixelData(data=truth), pred_sem_seg=PixelData(data=found)))
    figure = vis.draw_predictions([sample], ['sky', 'sea', 'sand'])
    assert figure.axes[1].get_title() == 'prediction: 75% of pixels right'
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['sky', 'sand']


def test_labels_say_right_and_wrong(image: str) -> None:
    samples = []
    for truth in (0, 1):
        sample = BaseDataElement(metainfo=dict(img_path=image))
        chances = torch.tensor([0.8, 0.2])
        sample.set_data(dict(pred_label=torch.tensor([0]), pred_score=chances))
        sample.set_data(dict(gt_label=torch.tensor([truth])))
        samples.append(sample)
    titles = {axis.get_title() for axis in vis.draw_predictions(samples, ['cat', 'dog']).axes}
    assert titles == {'right: is cat', 'wrong: is dog', ''}


def test_predictions_need_predictions(image: str) -> None:
    with pytest.raises(ValueError, match='at least one data sample'):
        vis.draw_predictions([])
    with pytest.raises(ValueError, match='must hold predictions'):
        vis.draw_predictions([BaseDataElement(metainfo=dict(img_path=image))])
    with pytest.raises(ValueError, match='need a model from a config'):
        vis.predict(vis.Subject(torch.nn.Identity()))


def test_samples(tmp_path: Path) -> None:
    path = tmp_path / 'wide.png'
    Image.fromarray(np.full((50, 200, 3), (0, 128, 255), np.uint8)).save(path)
    sample = vis.read_sample(path, long_side=100, mean=(0, 0.5, 0), std=(1, 1, 0.5))
    assert sample.size == (25, 100)
    assert sample.input[0, :, 3, 7].tolist() == pytest.approx([0, 128 / 255 - 0.5, 2], abs=1e-6)
    assert vis.image_files(tmp_path) == vis.image_files(path) == [path]
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(ValueError, match='must be a file that PIL reads'):
        vis.read_sample(tmp_path / 'text.png')
    with pytest.raises(FileNotFoundError, match='or a folder with images'):
        vis.image_files(tmp_path / 'nothing')


def run_tool(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['visualize.py', *args])
    runpy.run_path(str(ROOT / 'tools' / 'visualize.py'), run_name='__main__')


def test_tool(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_tool(monkeypatch, 'pyramid', 'xcit_nano_12_p16', image, '--out', str(tmp_path))
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / 'pyramid_image.png')
    assert 'weights are random' in printed.err
    with Image.open(tmp_path / 'pyramid_image.png') as picture:
        assert np.asarray(picture).std() > 0
    with pytest.raises(SystemExit, match=r'error: .*name of list_models\(\) or the path'):
        run_tool(monkeypatch, 'pyramid', 'no_such_model', image)
