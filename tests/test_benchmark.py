"""The benchmark's arithmetic, and one small run through its command."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmvit_backbones import benchmark

ROOT = Path(__file__).resolve().parents[1]


def test_exponent_of_a_power_law() -> None:
    pixels = [1e4, 4e4, 16e4]
    assert benchmark.fit_exponent(pixels, [3 * p**1.5 for p in pixels]) == pytest.approx(1.5)


@pytest.mark.parametrize('network', ['twins_svt_small', 'xcit_small_12_p16'])
def test_peers_have_the_same_maps(network: str) -> None:
    x = torch.zeros(1, 3, 64, 96)
    shapes = {}
    for name, model in benchmark.build_subjects(network).items():
        model.eval()
        with torch.no_grad():
            shapes[name] = [tuple(m.shape) for m in model(x)]
    assert {'ours', 'timm', 'mmpretrain'} <= shapes.keys()
    assert all(found == shapes['ours'] for found in shapes.values()), shapes


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        'benchmark.py',
        *('--networks', 'xcit_nano_12_p16'),
        *('--sizes', '64x64', '64x96x2'),
        *('--subjects', 'ours', 'ours-fused', 'ours-with-cp', 'timm'),
        *('--passes', 'forward', 'train'),
        *('--repeats', '1'),
        *('--device', 'cpu'),
        *('--out', str(tmp_path)),
        '--growth',
    ]
    monkeypatch.setattr(sys, 'argv', arguments)
    runpy.run_path(str(ROOT / 'tools' / 'benchmark.py'), run_name='__main__')
    with (tmp_path / 'benchmark.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['subject'], row['run'], row['batch']) for row in rows] == [
        (subject, run, batch)
        for run, variant in (('forward', 'ours-fused'), ('train', 'ours-with-cp'))
        for batch in ('1', '2')
        for subject in ('ours', variant, 'timm')
    ]
    assert all(float(row['seconds']) > 0 and float(row['speedup']) > 0 for row in rows)
    report = (tmp_path / 'benchmark.md').read_text()
    assert 'xcit_nano_12_p16 train fp32 timm: time grows with pixels^' in report
    assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
