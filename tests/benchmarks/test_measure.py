"""Contenders in processes of their own, and the two commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ablate, forms, run
from benchmarks.measure import Contender, Row, Setting, matmul_rates, measure, peak_allocated
from benchmarks.report import read_csv

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in (run, ablate):
        monkeypatch.setattr(program, 'matmul_rates', lambda device: matmul_rates(device, size=64))


def test_who_fails_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    setting = Setting('xcit_nano_12_p16', 64, 64, 1, 'forward')
    assert measure(setting, [Contender('mmseg', 'eager')], CPU, dict(fp32=1e9, half=1e9)) == []
    assert "mmseg eager is left out: KeyError: 'mmseg'" in capsys.readouterr().out


def test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / 'results.csv'
    arguments = [
        *('run', '--networks', 'xcit_nano_12_p16', '--sizes', '64x96x2', '--seconds', '0'),
        *('--subjects', 'ours', '--forms', 'eager', 'malloc'),
        *('--passes', 'train', '--device', 'cpu', '--threads', '1', '--out', str(out)),
    ]
    monkeypatch.setattr(sys, 'argv', arguments)
    run.main()
    rows = read_csv(out)
    contenders = [('ours', 'eager'), ('ours', 'malloc')]
    assert [(row.subject, row.form) for row in rows] == contenders
    for row in rows:
        assert (row.batch, row.height, row.width, row.turns) == (2, 64, 96, 3)
        assert 0 < row.fastest <= row.seconds
        assert row.mebibytes is None or row.mebibytes > 0
        assert row.allocated is not None
        assert row.allocated > 0
        assert row.peak_share > 0


def test_peak_of_what_is_allocated() -> None:
    def run_pass() -> None:
        for mebibytes in (2, 3, 1):  # each is freed before the next one
            torch.zeros(2**18 * mebibytes).add_(torch.ones(1))

    assert peak_allocated(run_pass) == pytest.approx(3, abs=0.01)


def test_ablate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contenders whose time is known: each kernel and the remedy save what they are said to."""
    saves = {'norm_mlp': 4.0, 'conv_stem': 2.0, 'direct_attention': 1.0}

    def known(setting: Setting, contenders: list[Contender], *_: object) -> list[Row]:
        rows = []
        for subject, form in contenders:
            parts = forms.parse_form(form)
            only = [name for name in saves if f'only-{name}' in parts]
            runs = [
                name
                for name in saves
                if 'reference' not in parts
                and f'without-{name}' not in parts
                and (not only or name in only)
            ]
            seconds = 20 - sum(saves[name] for name in runs) - ('malloc' in parts) * 10
            row = Row(
                **vars(setting), subject=subject, form=form, precision='fp32', seconds=seconds,
                iqr=0.2, fastest=seconds, turns=3, mebibytes=1.0, allocated=8 * seconds,
                peak_share=1.0,
            )  # fmt: skip
            rows.append(row)
        return rows

    monkeypatch.setattr(ablate, 'measure', known)
    monkeypatch.setattr(ablate, 'REMEDIES', ('malloc', 'frozen', 'checkpointed'))
    arguments = [
        *('ablate', '--networks', 'xcit_nano_12_p16', '--sizes', '64x64', '--passes', 'forward'),
        *('--forms', 'eager', '--device', 'cpu', '--out', str(tmp_path / 'kernels.csv')),
    ]
    monkeypatch.setattr(sys, 'argv', arguments)
    ablate.main()
    measured = capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', ['ablate', '--read', str(tmp_path / 'kernels.csv')])
    ablate.main()
    table = capsys.readouterr().out.strip()
    assert table in measured
    assert table.splitlines() == [
        'eager:',
        '',
        '| item | forward, 1 of 64 x 64 |',
        '|---|---|',
        '| **xcit_nano_12_p16**, all kernels | 35, 35 |',
        '| `conv_stem` | 10/13, 10/13 |',
        '| `direct_attention` | 5/7, 5/7 |',
        '| `malloc` | 50/77, 50/77 |',
        '| `norm_mlp` | 20/24, 20/24 |',
        '| spread | 7% |',
    ]
    assert len(read_csv(tmp_path / 'kernels.csv')) == 8 + 4


def test_gains_are_found_within_a_run() -> None:
    """The last run of a comparison counts, and rows of different runs are not compared."""

    def rows(seconds: dict[str, float], run: str = 'train') -> list[Row]:
        setting = vars(Setting('twins_svt_small', 64, 64, 1, run))
        fixed = dict(subject='ours', precision='fp32', turns=3, mebibytes=None, allocated=2.0)
        return [
            Row(**setting, **fixed, form=f'eager+{form}', seconds=s, iqr=s, fastest=s, peak_share=1)
            for form, s in seconds.items()
        ]

    older = rows({'reference': 2.0, 'only-pad': 1.0, 'only-crop': 0.5})
    newer = rows({'reference': 10.0, 'only-pad': 9.0})
    other = rows({'only-windows': 1.0}, run='forward')
    found = {gain.item: gain.alone for gain in ablate.read_gains([*older, *newer, *other])}
    saved = {item: pair[0].seconds - pair[1].seconds for item, pair in found.items() if pair}
    assert saved == {'pad': 1.0, 'crop': 1.5}
    assert '| `crop` | 75/?, 0/? |' in ablate.format_gains(ablate.read_gains(older))
