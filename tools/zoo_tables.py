"""Write the tables of public weights into docs/zoo.md."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from mmvit_backbones.checkpoints.zoo import file_table, model_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'zoo.md'
TABLES = {'models': model_table, 'weights': file_table}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, fail if they differ')
    return parser.parse_args()


def write_tables(check: bool) -> list[str]:
    """Bring the tables up to date and return the names of those that differed."""
    page = PAGE.read_text(encoding='utf-8')
    stale = []
    for name, make in TABLES.items():
        between = re.compile(rf'(?<=<!-- {name} -->\n).*?(?=\n<!-- end -->)', re.DOTALL)
        old = page
        page = between.sub(make(), old)
        if page != old:
            stale.append(name)
    if stale and not check:
        PAGE.write_text(page, encoding='utf-8')
    return stale


if __name__ == '__main__':
    args = parse_args()
    stale = write_tables(args.check)
    if args.check and stale:
        sys.exit(
            f'tables differ in docs/zoo.md: {", ".join(stale)}: run python tools/zoo_tables.py'
        )
