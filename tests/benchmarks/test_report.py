"""The arithmetic of the tables, and what is written."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ablate, report
from benchmarks.measure import Row

ROW = Row(
    network='twins_svt_small', height=100, width=100, batch=1, run='forward', subject='ours',
    form='eager', precision='fp32', seconds=2.0, iqr=0.1, fastest=1.9, turns=5, mebibytes=30.0,
    allocated=None, peak_share=0.5,
)  # fmt: skip


def test_power_law() -> None:
    pixels = [1e4, 4e4, 16e4]
    exponent, factor = report.fit_power(pixels, [3 * p**1.5 for p in pixels])
    assert exponent == pytest.approx(1.5)
    assert factor == pytest.approx(3)


def test_best_form_against_best_peer() -> None:
    rows = [
        replace(ROW, seconds=3.0),
        replace(ROW, form='compiled', mebibytes=20.0),
        replace(ROW, form='bf16', precision='half', seconds=0.1),
        replace(ROW, subject='timm', seconds=9.0),
        replace(ROW, subject='timm', form='frozen', seconds=5.0, mebibytes=40.0),
        replace(ROW, subject='mmseg', seconds=7.0),
    ]
    (best,) = report.find_best(rows)
    assert (best.ours.form, best.peer.subject, best.peer.form) == ('compiled', 'timm', 'frozen')
    assert best.speedup == 2.5
    assert best.memory_share == 0.5
    allocated = report.Best(
        *(replace(row, allocated=a) for row, a in zip(best, (9.0, 90.0), strict=True))
    )
    assert allocated.memory_share == 0.1
    assert '| compiled | timm | frozen | 2.50 | 0.50 |' in report.format_best([best])


def test_growth_and_where_one_overtakes() -> None:
    rows = []
    for side in (100, 200, 400):
        at = dict(height=side, width=side)
        for network, seconds in (('twins', side**3 / 1e6), ('xcit', side**2 * 3e-4)):
            at_size = replace(ROW, **at, network=network, seconds=seconds, fastest=seconds)
            rows.append(replace(at_size, mebibytes=float(side**2)))
    text = report.format_growth(rows)
    assert '- twins forward ours eager: time grows with pixels^1.500, peak memory' in text
    assert '- xcit forward ours eager: time grows with pixels^1.000' in text
    assert 'forward ours eager: xcit is the faster from 9e+04 pixels' in text


def test_csv_is_added_to_and_read(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'results.csv'
    without_memory = replace(ROW, mebibytes=None, form='compiled+bf16')
    report.write_csv([ROW], path, 'a machine')
    report.write_csv([without_memory], path, 'a machine')
    assert report.read_csv(path) == [ROW, without_memory]
    with path.open(newline='') as file:
        first = next(csv.DictReader(file))
    assert first['machine'] == 'a machine'
    assert 'torch ' in first['versions']


def test_csv_without_a_column(tmp_path: Path) -> None:
    path = tmp_path / 'results.csv'
    report.write_csv([ROW], path, 'a machine')
    with path.open(newline='') as file:
        (line,) = csv.DictReader(file)
    del line['allocated']
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, line)
        writer.writeheader()
        writer.writerow(line)
    assert report.read_csv(path) == [ROW]
    with pytest.raises(ValueError, match='has other columns'):
        report.write_csv([ROW], path, 'a machine')


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        replace(ROW, subject=subject, run=run, height=side, seconds=seconds)
        for side in (100, 200)
        for run in ('forward', 'train')
        for subject, seconds in (('ours', 1.0), ('timm', 1.5))
    ]
    report.write_csv(rows, tmp_path / 'a.csv', 'a machine')
    arguments = ['report', str(tmp_path / 'a.csv'), '--speed', str(tmp_path / 'speed.svg')]
    monkeypatch.setattr('sys.argv', arguments)
    report.main()
    assert '| train | fp32 | eager | timm | eager | 1.50 | 1.00 |' in capsys.readouterr().out
    assert '<svg' in (tmp_path / 'speed.svg').read_text()


@pytest.mark.parametrize('name', ['kernels', 'remedies'])
def test_the_kernels_page_has_the_tables_of_all_results(name: str) -> None:
    files = sorted(report.RESULTS.glob(f'*_{name}.csv'))
    rows = [row for path in files for row in report.read_csv(path)]
    printed = ablate.format_gains(ablate.read_gains(rows))
    page = (report.ROOT / 'mmvit_backbones' / 'kernels' / 'README.md').read_text()
    tables = [part for part in printed.split('\n\n') if part.startswith('|')]
    assert tables
    for table in tables:
        assert table in page
