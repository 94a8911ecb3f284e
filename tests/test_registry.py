"""Scoped names build everywhere, and importing the package stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

CONFIG = "dict(type='mmvit_backbones.{}', init_cfg=None)"
TOOLKITS = ('mmdet', 'mmseg', 'mmpretrain')


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_needs_no_toolkit() -> None:
    forbidden = {*TOOLKITS, 'timm', 'torchvision', 'mmcv.ops'}
    run_python(
        'import sys, mmvit_backbones\n'
        f'found = {forbidden!r} & set(sys.modules)\n'
        'assert not found, found'
    )


@pytest.mark.parametrize('name', ['TwinsSVT', 'XCiT'])
def test_bare_mmengine_builds_without_custom_imports(name: str) -> None:
    run_python(
        'from mmengine.registry import MODELS\n'
        f'model = MODELS.build({CONFIG.format(name)})\n'
        f'assert type(model).__module__.startswith("mmvit_backbones"), type(model)'
    )


def test_every_toolkit_builds_without_custom_imports() -> None:
    run_python(
        'from importlib import import_module\n'
        f'for toolkit in {TOOLKITS!r}:\n'
        '    registry = import_module(f"{toolkit}.registry")\n'
        '    import_module(f"{toolkit}.utils").register_all_modules(init_default_scope=True)\n'
        '    for name in ("TwinsSVT", "XCiT"):\n'
        '        model = registry.MODELS.build(dict(type=f"mmvit_backbones.{name}"))\n'
        '        assert type(model).__module__.startswith("mmvit_backbones"), type(model)\n'
    )


def test_bare_names_stay_free() -> None:
    run_python(
        'import mmvit_backbones\n'
        'from mmengine.registry import MODELS\n'
        'assert MODELS.get("TwinsSVT") is None and MODELS.get("XCiT") is None'
    )
