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


def summary_table() -> str:
    """Return the table of the ImageNet weights, a line for each size."""
    tags = ('in1k', 'dist_in1k', 'dist_in1k_384')
    sizes: dict[str, list[str]] = {}
    for model in model_names():
        if f'{model}.in1k' in list_pretrained(model):
            sizes.setdefault(re.sub(r'_p\d+$', '', model), []).append(model)
    lines = [
        f'| model | parameters (M) | multiply-adds (G) | {" | ".join(f"`{t}`" for t in tags)} |',
        '|---|---|---|---|---|---|',
    ]
    for size, models in sizes.items():
        names = ', '.join(f'`{m}`' if m == models[0] else f'`{m[len(size) :]}`' for m in models)
        parameters, multiply_adds = zip(*map(cost, models), strict=True)
        cells = [
            [f'{number / 1e6:.1f}' for number in parameters],
            [f'{number / 1e9:.2f}' for number in multiply_adds],
        ]
        for tag in tags:
            files = [list_pretrained(m).get(f'{m}.{tag}') for m in models]
            cells.append([file.reported.removeprefix('top-1 ') for file in files if file])
        lines.append(f'| {" | ".join([names, *map(", ".join, cells)])} |')
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


# Page -> marker -> table.
TABLES = {
    'README.md': {'summary': summary_table},
    'docs/zoo.md': {'models': model_table, 'weights': file_table},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, fail if they differ')
    return parser.parse_args()


def write_tables(check: bool) -> list[str]:
    """Bring the tables up to date and return those that differed, as page and marker."""
    stale = []
    for name, tables in TABLES.items():
        page = ROOT / name
        text = page.read_text(encoding='utf-8')
        for marker, make in tables.items():
            between = re.compile(rf'(?<=<!-- {marker} -->\n).*?(?=<!-- end -->)', re.DOTALL)
            new = between.sub(make() + '\n', text)
            if new != text:
                stale.append(f'{name} {marker}')
            text = new
        if not check:
            page.write_text(text, encoding='utf-8')
    return stale


if __name__ == '__main__':
    args = parse_args()
    stale = write_tables(args.check)
    if args.check and stale:
        sys.exit(f'tables differ: {", ".join(stale)}: run python tools/zoo_tables.py')
