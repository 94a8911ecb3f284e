"""Measure our backbones beside every installed peer: a table, a CSV file and a plot."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch

from mmvit_backbones import benchmark as bench
from mmvit_backbones import list_models


def size_and_batch(text: str) -> tuple[int, int, int]:
    """Parse HxW or HxWxB."""
    numbers = [int(part) for part in text.split('x')]
    if len(numbers) not in (2, 3):
        raise argparse.ArgumentTypeError(f'a size is HxW or HxWxBATCH, got {text!r}')
    return numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--networks',
        nargs='+',
        choices=list_models(),
        metavar='NAME',
        default=['twins_svt_small', 'xcit_small_12_p16'],
        help='names of list_models()',
    )
    parser.add_argument(
        '--sizes', nargs='+', type=size_and_batch, default=[(800, 1344, 1), (512, 512, 2)],
        metavar='HxW[xBATCH]',
    )  # fmt: skip
    parser.add_argument('--passes', nargs='+', choices=bench.PASSES, default=['forward'])
    parser.add_argument('--precisions', nargs='+', choices=bench.PRECISIONS, default=['fp32'])
    parser.add_argument(
        '--subjects',
        nargs='+',
        help='ours, ours-fused, ours-with-cp and packages; default ours and all installed packages',
    )
    parser.add_argument('--compile', action='store_true', help='through torch.compile')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument(
        '--growth', action='store_true', help='fit the exponent of time and memory in pixels'
    )
    parser.add_argument('--repeats', type=int, default=5, help='passes that count')
    parser.add_argument('--threads', type=int, help="of the CPU; default torch's own")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    machine = bench.describe_machine(device)
    print(machine, flush=True)
    peak_rates = {
        precision: bench.measure_peak_rate(device, precision) for precision in args.precisions
    }
    rows: list[bench.Row] = []
    for network in args.networks:
        subjects = bench.build_subjects(network, args.subjects)
        for run, precision, (height, width, batch) in product(
            args.passes, args.precisions, args.sizes
        ):
            setting = bench.Setting(
                network, height, width, batch, run, precision, args.compile, args.channels_last
            )
            new = bench.measure(setting, subjects, device, args.repeats, peak_rates[precision])
            print(bench.format_table(new), flush=True)
            rows += new
    args.out.mkdir(parents=True, exist_ok=True)
    rates = ', '.join(f'{name} {2e-9 * rate:.0f} GFLOP/s' for name, rate in peak_rates.items())
    report = f'{machine}; matrix product: {rates}\n\n{bench.format_table(rows)}\n'
    if args.growth:
        report += '\n' + bench.format_growth(rows) + '\n'
    (args.out / 'benchmark.md').write_text(report)
    bench.write_csv(rows, args.out / 'benchmark.csv')
    bench.draw_plot(rows, args.out / 'benchmark.png')
    print(f'\n{report}\nwritten to {args.out}')


if __name__ == '__main__':
    main()
