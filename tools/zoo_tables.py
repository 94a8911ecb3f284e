"""Write the tables of public weights into README.md and docs/zoo.md."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from pathlib import Path

import torch

from mmvit_backbones import create_model, list_pretrained
from mmvit_backbones.checkpoints.networks import NETWORKS
from mmvit_backbones.complexity import count_multiply_adds, count_parameters

ROOT = Path(__file__).parents[1]
BETWEEN = re.compile(r'(?<=<!-- weights -->\n).*?(?=\n<!-- end -->)', re.DOTALL)


@functools.cache
def cost(model: str) -> tuple[int, int]:
    """Return parameters, and multiply-adds at 224 x 224, of a classifier of 1000 classes."""
    with torch.device('meta'):
        classifier = create_model(model, num_classes=1000)
    return count_parameters(classifier), count_multiply_adds(classifier, 224, 224)


def model_names() -> list[str]:
    """Return the names of all models of fixed sizes."""
    return [name for network in NETWORKS.values() for name in network.models]


def model_table() -> str:
    """Return the table of all models that have public weights."""
    lines = [
        '| model | parameters (M) | multiply-adds at 224 px (G) | weights, reported accuracy |',
        '|---|---|---|---|',
    ]
    for model in model_names():
        if files := list_pretrained(model).values():
            parameters, multiply_adds = cost(model)
            weights = '; '.join(f'`{file.tag}` {file.reported}' for file in files)
            numbers = f'{parameters / 1e6:.1f} | {multiply_adds / 1e9:.2f}'
            lines.append(f'| `{model}` | {numbers} | {weights} |')
    return '\n'.join(lines)


def file_table() -> str:
    """Return the table of all public weights."""
    lines = [
        '| name | image (px) | reported | by | licence | addresses, SHA-256 where known |',
        '|---|---|---|---|---|---|',
    ]
    for file in list_pretrained().values():
        addresses = [
            f'{"by hand: " * a.by_hand}<{a.url}>{f" {a.sha256}" if a.sha256 else ""}'
            for a in file.addresses
        ]
        lines.append(
            f'| `{file.name}` | {file.input_size} | {file.reported} | <{file.source}> | '
            f'{file.licence} | {"<br>".join(addresses)} |'
        )
    return '\n'.join(lines)


TABLES = {'README.md': model_table, 'docs/zoo.md': file_table}


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
