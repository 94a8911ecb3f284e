"""Public weights by name, from the descriptions of all networks."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from mmvit_backbones.checkpoints.description import PublicFile
from mmvit_backbones.checkpoints.networks import NETWORKS


def _files() -> Iterator[PublicFile]:
    for network in NETWORKS.values():
        yield from network.files


def list_pretrained(name: str | None = None) -> dict[str, PublicFile]:
    """Return the public weights: their names, and what is known of each.

    Args:
        name: A model of `list_models()`, or a detector or segmentor such as
            `upernet_twins_svt_small`; None for all.

    Raises:
        ValueError: If nothing has that name.
    """
    files = {file.name: file for file in _files()}
    if name is None:
        return files
    owners = {file.name.partition('.')[0] for file in files.values()}
    models = {model for n in NETWORKS.values() for model in (*n.models, *n.free_models)}
    if name not in owners | models:
        raise ValueError(
            f'name must be that of a model, got {name!r}{_hint(name, owners | models)}'
        )
    return {key: file for key, file in files.items() if key.partition('.')[0] == name}


def find_public_file(name: str) -> PublicFile | None:
    """Return the public file of a name, with or without its tag; None if there is none.

    Args:
        name: `<model>.<tag>`, or `<model>` for its default file.
    """
    return next((f for f in _files() if name in (f.name, f.name.partition('.')[0])), None)


def close_names(name: str) -> str:
    """Return a hint at public names that are spelt like a wrong one; empty if none is."""
    return _hint(name, {file.name for file in _files()})


def _hint(name: str, known: set[str]) -> str:
    close = get_close_matches(name, sorted(known))
    return f'; did you mean {" or ".join(close)}?' if close else ''


def model_table() -> str:
    """Return a Markdown table of all models that have public weights, for docs/zoo.md."""
    lines = [
        '| model | parameters (M) | multiply-adds at 224 px (G) | weights, reported accuracy |',
        '|---|---|---|---|',
    ]
    for network in NETWORKS.values():
        for model in network.models:
            files = list_pretrained(model).values()
            if files:
                millions, billions = network.costs[model][0] / 1e6, network.costs[model][1] / 1e9
                weights = '; '.join(f'`{file.tag}` {file.reported}' for file in files)
                lines.append(f'| `{model}` | {millions:.1f} | {billions:.2f} | {weights} |')
    return '\n'.join(lines)


def file_table() -> str:
    """Return a Markdown table of all public weights, for docs/zoo.md."""
    lines = [
        '| name | image (px) | reported | by | licence | addresses, SHA-256 where known |',
        '|---|---|---|---|---|---|',
    ]
    for file in _files():
        addresses = [f'<{a.url}>' + (f' {a.sha256}' if a.sha256 else '') for a in file.addresses]
        if file.page:
            addresses.append(f'by hand: <{file.page}>')
        lines.append(
            f'| `{file.name}` | {file.input_size} | {file.reported} | <{file.source}> | '
            f'{file.licence} | {"<br>".join(addresses)} |'
        )
    return '\n'.join(lines)
