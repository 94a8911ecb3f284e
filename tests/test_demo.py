"""The demo's table, pictures and errors; its trainings run with `make demo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import training as demo


def make_result(job: demo.Job, score: float) -> demo.Result:
    losses = [(10, 2.0), (20, 1.0)]
    return demo.Result(job, dict.fromkeys(job.metrics, score), 90.0, 512.0, losses)


def test_configs_exist() -> None:
    for job in demo.JOBS:
        assert (demo.ROOT / 'configs' / 'shapes' / job.config).is_file()
        assert set(job.metrics) <= set(demo.COLUMNS)


def test_table_marks_what_stayed_below_its_target() -> None:
    detector, segmentor = demo.JOBS[0], demo.JOBS[2]
    table = demo.format_table([make_result(detector, 0.85), make_result(segmentor, 0.3)])
    lines = table.splitlines()
    assert lines[2] == '| retinanet-twins-svt | 0.850 | 0.850 |  |  | 1.5 min | 512 MiB |'
    assert '0.300 (below 0.7)' in lines[3]


def test_a_missed_target_says_where_to_look(tmp_path: Path) -> None:
    result = make_result(demo.JOBS[0], 0.4)
    assert not result.has_learned
    text = demo.explain_miss(result, tmp_path)
    assert text.startswith('error: retinanet-twins-svt reached AP50 0.400, below 0.8.')
    for place in ('losses.png', 'retinanet-twins-svt/train.log', 'retinanet-twins-svt.png'):
        assert str(tmp_path / place) in text


def test_pictures(tmp_path: Path) -> None:
    (tmp_path / 'drawn').mkdir()
    for i in range(10):
        Image.fromarray(np.full((20, 40, 3), i, np.uint8)).save(tmp_path / 'drawn' / f'{i}.png')
    demo.draw_contact_sheet(demo.JOBS[0], tmp_path / 'drawn', tmp_path / 'sheet.png')
    demo.draw_losses([make_result(job, 1.0) for job in demo.JOBS], tmp_path / 'losses.png')
    for name in ('sheet.png', 'losses.png'):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image).std() > 0


def test_a_failing_tool_is_named_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / 'train.log'
    with pytest.raises(demo.DemoError, match=r'tools/train\.py nothing\.py failed; .*train\.log'):
        demo._run_tool(['train.py', 'nothing.py'], log, 'a job')
    assert "existing file, got 'nothing.py'" in log.read_text()
