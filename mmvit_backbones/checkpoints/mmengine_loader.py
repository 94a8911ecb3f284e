"""MMEngine's checkpoint loading through our safe reader.

Runners, inferencers, `init_detector` and the like, `load_from`, `--resume` and MMEngine's own
`Pretrained` all read checkpoints by `CheckpointLoader`, which chooses a function by the start of
the path. Importing `mmvit_backbones` puts a safe one in each place.
"""

from __future__ import annotations

import ast
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.reading import find_file, read_file

MapLocation = str | torch.device | Callable[..., Any] | dict[str, str] | None


def register_safe_loaders() -> None:
    """Make MMEngine read every checkpoint as data."""
    for prefixes, loader in (
        (('', 'file://', 'http://', 'https://'), load_from_path),
        (('modelzoo://', 'torchvision://'), load_from_torchvision),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
        (('mmcls://',), load_from_mmcls),
        ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
        (('pavi://',), load_from_pavi),
    ):
        CheckpointLoader.register_scheme(prefixes=prefixes, loader=loader, force=True)


def load_from_path(filename: str, map_location: MapLocation = None) -> Any:
    """Read a file, or the downloaded copy of a URL, as MMEngine wants it.

    Args:
        filename: Path or URL.
        map_location: Device for the tensors. A function or a dictionary means the CPU, and so does
            None: a file cannot choose a device.

    Returns:
        What the file holds, without a configuration that is more than values; see `drop_code`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: See `read_checkpoint`.
    """
    path = find_file(filename)
    content = drop_code(read_file(path), str(path))
    if isinstance(map_location, (str, torch.device)) and torch.device(map_location).type != 'cpu':
        return _move(content, torch.device(map_location))
    return content


def load_from_torchvision(filename: str, map_location: MapLocation = None) -> Any:
    """Read weights that torchvision lists."""
    urls = mmengine_checkpoint.get_torchvision_models()
    return load_from_path(_look_up(filename, urls), map_location)


def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> Any:
    """Read weights that MMEngine lists."""
    urls = mmengine_checkpoint.get_external_models()
    for old, new in mmengine_checkpoint.get_deprecated_model_names().items():
        urls.setdefault(old, urls.get(new))
    url = _look_up(filename, urls)
    if not url.startswith(('http://', 'https://')):
        url = str(Path(mmengine_checkpoint._get_mmengine_home()) / url)
    return load_from_path(url, map_location)


def load_from_mmcls(filename: str, map_location: MapLocation = None) -> Any:
    """Read backbones that mmcls published."""
    content = load_from_path(
        _look_up(filename, mmengine_checkpoint.get_mmcls_models()), map_location
    )
    return mmengine_checkpoint._process_mmcls_checkpoint(content)


def load_from_ceph(filename: str, map_location: MapLocation = None) -> Any:
    """Read a file of an object store, from a temporary copy."""
    with tempfile.NamedTemporaryFile(suffix='.pth') as copy:
        copy.write(get(filename, backend_args={'backend': 'petrel'}))
        copy.flush()
        return load_from_path(copy.name, map_location)


def load_from_pavi(filename: str, map_location: MapLocation = None) -> Any:
    """Refuse a storage whose client would download and read by itself.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(f'{filename!r}: download the file and give its path')


def _look_up(filename: str, urls: dict[str, str]) -> str:
    name = filename.partition('://')[2]
    if urls.get(name) is None:
        raise FileNotFoundError(f'there is no checkpoint {filename!r}')
    return urls[name]


def _move(content: Any, device: torch.device) -> Any:
    """Copy the tensors inside dictionaries, lists and tuples to a device."""
    if isinstance(content, Tensor):
        return content.to(device)
    if isinstance(content, dict):
        for key, value in content.items():
            content[key] = _move(value, device)
    elif isinstance(content, list):
        content[:] = [_move(value, device) for value in content]
    elif type(content) is tuple:
        return tuple(_move(value, device) for value in content)
    return content


# A configuration inside a checkpoint


def drop_code(content: Any, name: str) -> Any:
    """Take out of a checkpoint what MMEngine would run as Python.

    MMEngine writes its config into `meta['cfg']` and the message hub. It runs `meta['config']` when
    a run is resumed, and the others when an inferencer gets weights and no config.

    Args:
        content: What a checkpoint holds, changed in place.
        name: The checkpoint's name, for the log.
    """
    if not isinstance(content, dict):
        return content
    hub = content.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    for place in (content.get('meta'), info):
        for key in ('cfg', 'config'):
            if not isinstance(place, dict) or key not in place:
                continue
            problem = why_config_is_code(place[key])
            if problem:
                del place[key]
                print_log(
                    f'{name}: its configuration {problem} and was left out; an inferencer needs '
                    'the config file',
                    logger='current',
                    level=logging.WARNING,
                )
    return content


def why_config_is_code(text: Any) -> str:
    """Say why the text of a config could do more than name values; `''` if it could not.

    Plain are assignments of literals and of `dict(...)`, as MMEngine writes them. A `type` may be
    the name of a registered class, with or without its scope, but no path to an object in a module.
    """
    if not isinstance(text, str):
        return 'is no text'
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 'is not Python'
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not all(
            isinstance(target, ast.Name) for target in statement.targets
        ):
            return 'holds more than assignments'
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            is_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict'
            if not is_dict or node.args:
                return 'calls functions'
        elif not isinstance(node, _PLAIN_NODES):
            return 'computes values'
        for key, value in _named_values(node):
            if key in ('_base_', 'custom_imports'):
                return f'has {key}'
            if key == 'type' and not (
                isinstance(value, ast.Constant)
                and isinstance(value.value, str)
                and re.fullmatch(r'(\w+\.)?\w+', value.value)
            ):
                return 'has a type that is not the name of a registered class'
    return ''


_PLAIN_NODES = (
    *(ast.Module, ast.Assign, ast.Name, ast.Load, ast.Store, ast.keyword, ast.Constant),
    *(ast.Dict, ast.List, ast.Tuple, ast.Set, ast.UnaryOp, ast.USub, ast.UAdd),
)


def _named_values(node: ast.AST) -> list[tuple[Any, ast.expr]]:
    """The names that a part of a config gives to values."""
    if isinstance(node, ast.Assign):
        return [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.Call):
        return [(keyword.arg, keyword.value) for keyword in node.keywords]
    if isinstance(node, ast.Dict):
        return [
            (key.value if isinstance(key, ast.Constant) else None, value)
            for key, value in zip(node.keys, node.values, strict=True)
        ]
    return []
