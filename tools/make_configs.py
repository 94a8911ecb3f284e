"""Write the leaf configs, README tables and metafiles of configs/ from its tables, recipes.yml.

configs/README.md says what a table holds and how to add a size or a method.
"""

from __future__ import annotations

import argparse
import copy
import functools
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PAPERS = {
    'Twins-SVT': {
        'Title': 'Twins: Revisiting the Design of Spatial Attention in Vision Transformers',
        'URL': 'https://arxiv.org/abs/2104.13840',
    },
    'XCiT': {
        'Title': 'XCiT: Cross-Covariance Image Transformers',
        'URL': 'https://arxiv.org/abs/2106.09681',
    },
}
SOURCES = {'Twins-SVT': 'twins_svt.py', 'XCiT': 'xcit.py'}
TABLE_START, TABLE_END = '<!-- configs -->\n', '<!-- end -->'
MADE = '# Made by tools/make_configs.py from recipes.yml'


@dataclass
class Leaf:
    """One config, which is one row of a table.

    Attributes:
        folder: Name of its folder in configs/.
        fields: Everything that the row, its family and its table say, and what follows from it.
        parameters: How many parameters its model has.
        config: Its resolved config.
    """

    folder: str
    fields: dict[str, Any]
    parameters: int = 0
    config: Config = field(default_factory=Config)

    def text(self, name: str) -> str:
        """Return a field with the other fields filled in.

        Raises:
            ValueError: If the field names one that neither the row nor its family has.
        """
        try:
            return Template(str(self.fields[name])).substitute(self.fields)
        except KeyError as error:
            row = {k: self.fields[k] for k in ('size', 'file') if k in self.fields}
            raise ValueError(
                f'configs/{self.folder}/recipes.yml: row {row} has no field {error}'
            ) from None

    @property
    def path(self) -> str:
        """Path of the config in the repository."""
        return f'configs/{self.folder}/{self.text("file")}.py'


def model_name(size: str) -> str:
    """Return the written name of a backbone base: xcit-s12-p8 is XCiT-S12/8."""
    network = 'Twins-SVT' if size.startswith('twins-svt') else 'XCiT'
    rest = size.removeprefix('twins-svt-').removeprefix('xcit-')
    if rest.startswith('toy'):
        return f'a toy {network}'
    return f'{network}-{rest.upper().replace("-P", "/")}'


def read_tables(root: Path) -> dict[str, dict[str, Any]]:
    """Return the tables, by the names of their folders."""
    return {
        path.parent.name: yaml.safe_load(path.read_text(encoding='utf-8'))
        for path in sorted((root / 'configs').glob('*/recipes.yml'))
    }


@functools.cache
def read_backbone(root: Path, size: str) -> Mapping[str, Any]:
    """Return the backbone of a base."""
    return Config.fromfile(root / f'configs/_base_/backbones/{size}.py').backbone


def read_leaves(root: Path, folder: str, table: Mapping[str, Any]) -> Iterator[Leaf]:
    """Yield the configs of a table."""
    shared = {k: v for k, v in table.items() if k not in ('columns', 'families')}
    for family in table['families']:
        for row in family['rows']:
            fields: dict[str, Any] = {'status': 'untested', **shared, **family, **row}
            size = fields['size']
            base = read_backbone(root, size)
            network = 'Twins-SVT' if size.startswith('twins') else 'XCiT'
            fields |= {
                'model': model_name(size),
                'network': network,
                'url': PAPERS[network]['URL'],
                'arch': base['arch'],
                'patch_size': base.get('patch_size'),
                'mmseg_size': size.replace('twins-svt', 'twins_svt'),
                'public_name': base.get('init_cfg', {}).get('checkpoint', '').partition('.')[0],
            }
            leaf = Leaf(folder, fields)
            fields |= {
                'path': leaf.path,
                'link': f'[{leaf.text("file")}.py]({leaf.text("file")}.py)',
            }
            yield leaf


def code(root: Path, leaf: Leaf) -> str:
    """Return the config without its header: from the table, or as it stands in the file."""
    if 'code' not in leaf.fields:
        return (root / leaf.path).read_text(encoding='utf-8').split('"""\n', 1)[1].strip() + '\n'
    names = [f'backbones/{leaf.fields["size"]}', *leaf.fields['bases']]
    bases = ''.join(f"    '../_base_/{name}.py',\n" for name in names)
    return f'_base_ = [\n{bases}]\n\n{leaf.text("code").strip()}\n'


def build(config: Config, device: str = 'meta') -> nn.Module:
    """Build the model of a config in its toolkit, by default with sizes only."""
    scope = config.default_scope
    registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    config = copy.deepcopy(config)  # building changes it
    model = config.model
    if 'data_preprocessor' in config:  # where mmpretrain's runner looks for it
        model.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        return registry.build(model)


def recorded(root: Path) -> dict[str, int]:
    """Return the parameters that the metafiles name, by the paths of the configs."""
    return {
        model['Config']: model['Metadata']['Parameters']
        for path in (root / 'configs').glob('*/metafile.yml')
        for model in yaml.safe_load(path.read_text(encoding='utf-8'))['Models']
    }


def resolve(root: Path, leaves: list[Leaf], count: bool) -> None:
    """Read every config with its bases; count or look up the parameters of its model."""
    known = recorded(root)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copytree(root / 'configs/_base_', copy / 'configs/_base_')
        for leaf in leaves:
            path = copy / leaf.path
            path.parent.mkdir(exist_ok=True)
            path.write_text(code(root, leaf), encoding='utf-8')
            leaf.config = Config.fromfile(path)
            if leaf.path in known and not (count and find_spec(leaf.config.default_scope)):
                leaf.parameters = known[leaf.path]
            else:
                leaf.parameters = sum(p.numel() for p in build(leaf.config).parameters())
            leaf.fields['parameters'] = f'{leaf.parameters / 1e6:.1f}'


def batch(config: Config) -> tuple[int, int, int]:
    """Return GPUs, images a GPU and images a step."""
    images, total = config.train_dataloader.batch_size, config.auto_scale_lr.base_batch_size
    return total // images, images, total


def length(config: Config) -> tuple[str, int]:
    """Return what a training is counted in, and how many."""
    epochs = config.train_cfg.get('max_epochs')
    return ('Epochs', epochs) if epochs else ('Iterations', config.train_cfg.max_iters)


def weights(config: Config) -> str:
    """Say what the training starts from."""
    model = config.model
    start = model.get('init_cfg') or model.get('backbone', {}).get('init_cfg')
    if not start:
        return 'none, from scratch.'
    return f'starts from {start.checkpoint}, downloaded at the first start.'


def header(leaf: Leaf) -> str:
    """Return the docstring that a config begins with."""
    gpus, images, total = batch(leaf.config)
    unit, count = length(leaf.config)
    tool = f'tools/dist_train.sh {leaf.path} {gpus}' if gpus > 1 else f'tools/train.py {leaf.path}'
    command = f'Command: {tool} {leaf.fields.get("options", "")}'.rstrip()
    if 'command' in leaf.fields:
        command = f'Command: {leaf.text("command")}'
    places = f'{gpus} GPUs x {images} images = {total}' if gpus > 1 else f'1 GPU x {images} images'
    lines = {
        'Paper': leaf.text('paper'),
        'Data': leaf.text('prepare') if 'prepare' in leaf.fields else '',
        'Command': '',
        'Batch': f'{places}; {count:,} {unit.lower()}.',
        'Weights': leaf.text('weights') if 'weights' in leaf.fields else weights(leaf.config),
        'Status': leaf.text('status'),
    }
    parts = [leaf.text('title'), '']
    parts += [
        command if key == 'Command' else wrap(f'{key}: {value}')
        for key, value in lines.items()
        if value or key == 'Command'
    ]
    if 'number' in leaf.fields:
        parts.append(wrap(leaf.text('number')))
    return '"""' + '\n'.join(parts) + '\n"""\n'


def wrap(text: str) -> str:
    return textwrap.fill(
        text, 100, subsequent_indent='    ', break_long_words=False, break_on_hyphens=False
    )


def readme(root: Path, folder: str, table: Mapping[str, Any], leaves: list[Leaf]) -> str:
    """Return the folder's README with a fresh table between its two marks."""
    columns = table['columns']
    rows = [columns, ['---'] * len(columns)]
    for leaf in leaves:
        rows.append([Template(str(cell)).substitute(leaf.fields) for cell in columns.values()])
    lines = ''.join('| ' + ' | '.join(row) + ' |\n' for row in rows).replace('| --- ', '|---')
    lines = lines.replace('|--- |', '|---|')
    old = (root / f'configs/{folder}/README.md').read_text(encoding='utf-8')
    before, start, rest = old.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not start or not end:
        raise ValueError(f'configs/{folder}/README.md needs {TABLE_START.strip()} and {TABLE_END}')
    return before + start + lines + end + after


def metafile(folder: str, table: Mapping[str, Any], leaves: list[Leaf]) -> str:
    """Return the folder's metafile.yml."""
    networks = [name for name in PAPERS if any(x.fields['network'] == name for x in leaves)]
    collections = []
    for network in networks:
        name = Template(table['collection']).substitute(network=network)
        collections.append(
            {
                'Name': name,
                'Metadata': {'Architecture': [network, *table['architecture']]},
                'Paper': PAPERS[network],
                'README': f'configs/{folder}/README.md',
                'Code': f'mmvit_backbones/backbones/{SOURCES[network]}',
            }
        )
    models = []
    for leaf in leaves:
        unit, count = length(leaf.config)
        models.append(
            {
                'Name': leaf.text('file'),
                'In Collection': leaf.text('collection'),
                'Config': leaf.path,
                'Metadata': {
                    'Parameters': leaf.parameters,
                    'Training Data': leaf.text('data'),
                    unit: count,
                    'Batch Size': batch(leaf.config)[2],
                },
            }
        )
    return f'{MADE}.\n' + to_yaml({'Collections': collections, 'Models': models})


class PlainDumper(yaml.SafeDumper):
    """Writes what occurs twice twice, not as a reference."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return whether to write a value in full."""
        return True


def to_yaml(content: Mapping[str, Any]) -> str:
    return yaml.dump(content, Dumper=PlainDumper, sort_keys=False, width=100)


def make(root: Path = ROOT, count: bool = True) -> tuple[list[Leaf], dict[str, str]]:
    """Return all configs of the tables, and path -> text of every file that belongs to them.

    Args:
        root: The repository.
        count: Build every model to count its parameters, where its toolkit is installed; else only
            those that no metafile names yet.
    """
    tables = read_tables(root)
    files, everything = {}, []
    for folder, table in tables.items():
        leaves = list(read_leaves(root, folder, table))
        resolve(root, leaves, count)
        for leaf in leaves:
            files[leaf.path] = f'{header(leaf)}\n{code(root, leaf)}'
        files[f'configs/{folder}/README.md'] = readme(root, folder, table, leaves)
        files[f'configs/{folder}/metafile.yml'] = metafile(folder, table, leaves)
        everything += leaves
    imports = {'Import': [f'configs/{folder}/metafile.yml' for folder in tables]}
    files['model-index.yml'] = f'{MADE}.\n' + to_yaml(imports)
    return everything, files


def stale(files: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Return the paths that differ from `files`, and the configs that no row stands for."""
    differing = [
        path
        for path, text in files.items()
        if not (root / path).is_file() or (root / path).read_text(encoding='utf-8') != text
    ]
    found = (path.relative_to(root) for path in (root / 'configs').glob('[!_]*/*.py'))
    return differing + [f'{path} (no row)' for path in map(str, found) if path not in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, fail if files differ')
    parser.add_argument(
        '--no-count', action='store_true', help='take parameters that a metafile names from there'
    )
    args = parser.parse_args()
    _, files = make(count=not args.no_count)
    paths = stale(files)
    if args.check:
        if paths:
            sys.exit(
                '\n'.join([*paths, 'differ from the tables: run python tools/make_configs.py'])
            )
        return
    for path in paths:
        if path in files:
            (ROOT / path).write_text(files[path], encoding='utf-8')
        print(path)


if __name__ == '__main__':
    main()
