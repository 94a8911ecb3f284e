"""Put every kernel on trial: alone, and added last to all others.

Library remedies stand trial beside them: alone, and added to all kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import forms, report
from benchmarks.measure import Contender, Row, Setting, matmul_rates, measure
from benchmarks.peers import OURS
from benchmarks.run import SIZES, common_arguments
from mmvit_backbones.kernels import KERNEL_NAMES

ITEMS = KERNELS, LIBRARY_REMEDIES = ('kernels', 'remedies')
REMEDIES = ('malloc', 'tcmalloc', 'jemalloc', 'frozen', 'checkpointed')
ALL = 'all'
FORMS = ['eager', 'eager+bf16', 'compiled', 'compiled+bf16']


class Gain(NamedTuple):
    """What an item changes under a setting.

    Attributes:
        item: A kernel, a remedy, or `ALL`.
        form: The form of all four contenders.
        alone: Rows of the reference and of the reference with the item.
        last: Rows of all kernels but the item and with it; of all kernels and those with the
            remedy.
    """

    item: str
    form: str
    alone: tuple[Row, Row] | None
    last: tuple[Row, Row] | None

    @property
    def rows(self) -> list[Row]:
        """The four rows, or two where the others were not measured."""
        return [row for pair in (self.alone, self.last) if pair for row in pair]


def trials(
    base: str, run: str, serving: Iterable[str], remedies: Iterable[str]
) -> list[list[tuple[str, str, str]]]:
    """Return what to compare, in groups that are measured together.

    Args:
        base: A form.
        run: `'forward'` or `'train'`.
        serving: Kernels that serve a layer in it.
        remedies: Those that the machine has.

    Returns:
        In each group, items with the two forms that differ by the item: alone, then last. The form
        of `ALL` is compared alone only.
    """
    reference = f'{base}+reference'
    kernels = [(ALL, reference, base)]
    for name in sorted(serving):
        kernels.append((name, reference, f'{base}+only-{name}'))
        kernels.append((name, f'{base}+without-{name}', base))
    groups = [kernels]
    for name in remedies:
        is_compiled = 'compiled' in forms.parse_form(base)
        if forms.serves(name, OURS, run) and (name != 'frozen' or is_compiled):
            groups.append([(name, f, f'{f}+{name}') for f in (reference, base)])
    return groups


def gains(base: str, group: list[tuple[str, str, str]], rows: list[Row]) -> list[Gain]:
    """Pair the rows of a group by its items."""
    by_form = {row.form: row for row in rows}
    found: dict[str, list[Any]] = {}
    for item, before, after in group:
        pair = by_form.get(before), by_form.get(after)
        found.setdefault(item, []).append(pair if all(pair) else None)
    return [Gain(item, base, *[*pairs, None][:2]) for item, pairs in found.items() if any(pairs)]


def read_gains(rows: Iterable[Row]) -> list[Gain]:
    """Find the gains in rows of CSV files. Only rows of the same run are compared.

    Where several runs measured the same, the last one counts.
    """
    found: dict[tuple[Any, ...], Gain] = {}
    for measured in _split(rows):
        for base in FORMS:
            for group in trials(base, measured[0].run, KERNEL_NAMES, REMEDIES):
                for gain in gains(base, group, measured):
                    key = gain.item, base, _setting(measured[0])
                    older = found.get(key, gain)
                    alone, last = gain.alone or older.alone, gain.last or older.last
                    found[key] = gain._replace(alone=alone, last=last)
    return list(found.values())


def _split(rows: Iterable[Row]) -> list[list[Row]]:
    """Split rows into runs: where the setting changes, or a form is measured again."""
    runs: list[list[Row]] = []
    for row in rows:
        last = runs[-1] if runs else []
        if not last or _setting(row) != _setting(last[0]) or row.form in [r.form for r in last]:
            runs.append([])
        runs[-1].append(row)
    return runs


def _setting(row: Row) -> tuple[str, str, int, int, int]:
    return row.network, row.run, row.height, row.width, row.batch


def format_gains(found: Iterable[Gain]) -> str:
    """Lay gains out as Markdown tables, one for each form.

    A cell is percent of time, then of memory, that an item saves: alone/last, or a single number
    for all kernels. The last row of a network is the widest spread in percent of the median time.
    """
    by_form: dict[str, list[Gain]] = {}
    for gain in found:
        by_form.setdefault(gain.form, []).append(gain)
    return '\n\n'.join(f'{form}:\n\n{_gain_table(some)}' for form, some in by_form.items())


def _gain_table(found: list[Gain]) -> str:
    columns = sorted({_setting(gain.rows[0])[1:] for gain in found})
    lines = []
    for network in sorted({gain.rows[0].network for gain in found}):
        some = [gain for gain in found if gain.rows[0].network == network]
        for item in [ALL, *sorted({gain.item for gain in some} - {ALL})]:
            cells = {_setting(g.rows[0])[1:]: _gain_cell(g) for g in some if g.item == item}
            name = f'**{network}**, all kernels' if item == ALL else f'`{item}`'
            lines.append([name, *(cells.get(column, '') for column in columns)])
        rows = {row for gain in some for row in gain.rows}
        spreads = [[r.iqr / r.seconds for r in rows if _setting(r)[1:] == c] for c in columns]
        lines.append(['spread', *(f'{max(s):.0%}' if s else '' for s in spreads)])
    titles = [f'{run}, {batch} of {height} x {width}' for run, height, width, batch in columns]
    return report.table(' | '.join(['item', *titles]), lines)


def _gain_cell(gain: Gain) -> str:
    pairs = [gain.alone] if gain.item == ALL else [gain.alone, gain.last]
    times = [pair and (pair[0].seconds, pair[1].seconds) for pair in pairs]
    memory = [pair and pair[0].memory_beside(pair[1]) for pair in pairs]
    return ', '.join('/'.join(map(_percent_saved, some)) for some in (times, memory))


def _percent_saved(pair: tuple[float, float] | None) -> str:
    return str(round(100 - 100 * pair[1] / pair[0])) if pair else '?'


def parse_args() -> argparse.Namespace:
    parser = common_arguments(__doc__, FORMS)
    add = parser.add_argument
    add('--items', nargs='+', choices=ITEMS, default=ITEMS, help='what to try')
    add('--read', nargs='+', type=Path, metavar='FILE', help='CSV to tabulate; nothing is measured')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.read:
        print(format_gains(read_gains(row for path in args.read for row in report.read_csv(path))))
        return
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    machine = report.machine_name(device)
    rates = matmul_rates(device)
    print(f'{machine}; {report.versions()}\n', flush=True)
    out = args.out or report.results_path(machine, '_kernels.csv')
    remedies = [name for name in REMEDIES if forms.is_installed(name)]
    found: list[Gain] = []
    for network, (height, width, batch), run, base in product(
        args.networks, args.sizes or SIZES, args.passes, args.forms
    ):
        setting = Setting(network, height, width, batch, run)
        serving = forms.serving_kernels(network, base, run, setting.images(device))
        kernel_group, *remedy_groups = trials(base, run, serving, remedies)
        groups = [kernel_group] if KERNELS in args.items else []
        groups += remedy_groups if LIBRARY_REMEDIES in args.items else []
        for group in groups:
            wanted = dict.fromkeys(form for _, before, after in group for form in (before, after))
            contenders = [Contender(OURS, form) for form in wanted]
            rows = measure(setting, contenders, device, rates, args.seconds)
            report.write_csv(rows, out, machine)
            new = gains(base, group, rows)
            print(format_gains(new), flush=True)
            found += new
    print(f'\n{format_gains(found)}\n\nrows added to {out}')


if __name__ == '__main__':
    main()
