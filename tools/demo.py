"""Train and evaluate our backbones on synthetic data: a table and pictures within minutes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmvit_backbones.demo import JOBS, DemoError, run_demo


def parse_args() -> argparse.Namespace:
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='where to write')
    parser.add_argument(
        '--only', nargs='+', choices=names, default=names, metavar='MODEL', help=', '.join(names)
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        results = run_demo(args.out.resolve(), [job for job in JOBS if job.name in args.only])
    except DemoError as error:
        sys.exit(f'error: {error}')
    if not all(result.has_learned for result in results):
        sys.exit('error: a model stayed below its target')


if __name__ == '__main__':
    main()
