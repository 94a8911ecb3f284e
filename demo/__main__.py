"""Train and evaluate our backbones on synthetic data: a table and pictures within minutes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.training import JOBS, DemoError, explain_miss, run_demo


def parse_args() -> argparse.Namespace:
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(prog='python -m demo', description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='where to write')
    parser.add_argument(
        '--only', nargs='+', choices=names, default=names, metavar='MODEL', help=', '.join(names)
    )
    parser.add_argument('--seed', type=int, default=0, help='of weights and order of the data')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    jobs = [job for job in JOBS if job.name in args.only]
    out = args.out.resolve()
    try:
        results = run_demo(out, jobs, args.seed)
    except DemoError as error:
        sys.exit(f'error: {error}')
    missed = [explain_miss(result, out) for result in results if not result.has_learned]
    if missed:
        sys.exit('\n'.join(missed))


if __name__ == '__main__':
    main()
