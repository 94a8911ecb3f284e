"""Put every kernel on trial: alone, and added last to all others.

Library remedies stand trial beside them: alone, and added to all kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

import torch

from benchmarks import forms, report
from benchmarks.measure import Contender, Row, Setting, matmul_rates, measure
from benchmarks.peers import OURS
from benchmarks.run import SIZES, common_arguments

ITEMS = KERNELS, LIBRARY_REMEDIES = ('kernels', 'remedies')
REMEDIES = ('malloc', 'tcmalloc', 'jemalloc', 'frozen', 'checkpointed')
ALL = 'all kernels'


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


def format_gains(found: list[Gain]) -> str:
    """Lay gains out as a Markdown table: percent of time and memory that an item saves."""
    titles = 'item | network | images | pass | form | time alone | time last | memory alone '
    titles += '| memory last | IQR'
    lines = []
    for gain in found:
        pairs = [pair for pair in (gain.alone, gain.last) if pair]
        row = pairs[0][0]
        noise = max(row.iqr / row.seconds for pair in pairs for row in pair)
        saved = [_saved(p and find(*p)) for find in (_seconds, Row.memory_beside) for p in gain[2:]]
        setting = row.network, report.images(row), row.run, gain.form
        lines.append([gain.item, *setting, *saved, f'{noise:.1%}'])
    return report.table(titles, lines)


def _seconds(before: Row, after: Row) -> tuple[float, float]:
    return before.seconds, after.seconds


def _saved(pair: tuple[float, float] | None) -> str:
    return f'{1 - pair[1] / pair[0]:+.1%}' if pair else ''


def parse_args() -> argparse.Namespace:
    forms_tried = ['eager', 'eager+bf16', 'compiled', 'compiled+bf16']
    parser = common_arguments(__doc__, forms_tried)
    parser.add_argument('--items', nargs='+', choices=ITEMS, default=ITEMS, help='what to try')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
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
    out.with_suffix('.md').write_text(format_gains(found) + '\n')
    print(f'\n{format_gains(found)}\n\nrows added to {out}, table written beside it')


if __name__ == '__main__':
    main()
