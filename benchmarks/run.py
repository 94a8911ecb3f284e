"""Measure our backbones beside every installed peer, each in several forms.

A form is a list of parts joined by `+`, such as `compiled+bf16`.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch

from benchmarks import forms, report
from benchmarks.measure import Contender, Row, Setting, matmul_rates, measure
from benchmarks.peers import SUBJECTS, subjects
from mmvit_backbones import list_models

NETWORKS = ('twins_svt_small', 'xcit_small_12_p16')
SIZES = ((224, 224, 8), (512, 512, 2), (800, 1344, 1))
GROWTH = tuple((side, side, 1) for side in (256, 512, 1024, 2048, 4096))


def size_and_batch(text: str) -> tuple[int, int, int]:
    """Parse HxW or HxWxB."""
    numbers = [int(part) for part in text.split('x')]
    if len(numbers) not in (2, 3):
        raise argparse.ArgumentTypeError(f'a size is HxW or HxWxBATCH, got {text!r}')
    return numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1


def form(text: str) -> str:
    """Check a form."""
    try:
        forms.parse_form(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def common_arguments(description: str | None, forms_tried: list[str]) -> argparse.ArgumentParser:
    """Return a parser of what both programs take."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add('--networks', nargs='+', choices=list_models(), metavar='NAME', default=NETWORKS)
    add('--sizes', nargs='+', type=size_and_batch, metavar='HxW[xBATCH]')
    add('--passes', nargs='+', choices=forms.PASSES, default=forms.PASSES)
    parts = '; '.join(f'{name}: {part.help}' for name, part in forms.PARTS.items())
    add('--forms', nargs='+', type=form, metavar='FORM', default=forms_tried, help=parts)
    add('--seconds', type=float, default=30, help='turns under a setting go on for so long')
    add('--threads', type=int, help="of the CPU; default torch's own")
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--out', type=Path, help='CSV to add to; default in benchmarks/results')
    return parser


def parse_args() -> argparse.Namespace:
    parser = common_arguments(__doc__, ['eager', 'fused', 'compiled', 'frozen'])
    parser.add_argument('--subjects', nargs='+', choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument('--growth', action='store_true', help='sizes of 256 to 4096 px')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device = torch.device(args.device)
    machine = report.machine_name(device)
    rates = matmul_rates(device)
    speeds = ', '.join(f'{name} {2e-9 * rate:.0f} GFLOP/s' for name, rate in rates.items())
    print(f'{machine}; {report.versions()}; matrix product: {speeds}\n', flush=True)
    out = args.out or report.results_path(machine)
    sizes = args.sizes or (GROWTH if args.growth else SIZES)
    rows: list[Row] = []
    for network, (height, width, batch), run in product(args.networks, sizes, args.passes):
        setting = Setting(network, height, width, batch, run)
        contenders = [
            Contender(subject, form)
            for subject, form in product(subjects(network), args.forms)
            if subject in args.subjects and forms.serves(form, subject, run)
        ]
        new = measure(setting, contenders, device, rates, args.seconds)
        print(report.format_table(new), flush=True)
        report.write_csv(new, out, machine)
        rows += new
    print(f'\n{report.format_report(rows)}\n\nadded to {out}')


if __name__ == '__main__':
    main()
