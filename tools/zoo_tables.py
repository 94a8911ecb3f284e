"""Write the tables of public weights into README.md and docs/zoo.md."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from mmvit_backbones.checkpoints.zoo import file_table, model_table

ROOT = Path(__file__).parents[1]
TABLES = {'README.md': model_table, 'docs/zoo.md': file_table}
BETWEEN = re.compile(r'(?<=<!-- weights -->\n).*?(?=\n<!-- end -->)', re.DOTALL)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, fail if they differ')
    return parser.parse_args()


def write_tables(check: bool) -> list[str]:
    """Bring the tables up to date and return the files whose table differed."""
    stale = []
    for name, make in TABLES.items():
        path = ROOT / name
        old = path.read_text(encoding='utf-8')
        new = BETWEEN.sub(make(), old)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new, encoding='utf-8')
    return stale


if __name__ == '__main__':
    args = parse_args()
    stale = write_tables(args.check)
    if args.check and stale:
        sys.exit(f'tables differ in {", ".join(stale)}: run python tools/zoo_tables.py')
