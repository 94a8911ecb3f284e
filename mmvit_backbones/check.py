"""Print what is installed, whether it works together, and what to do where it does not.

usage: python -m mmvit_backbones.check
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from mmvit_backbones import create_model
from mmvit_backbones.kernels.dispatch import KERNEL_NAMES
from mmvit_backbones.kernels.operators import HAS_CUSTOM_OPS
from mmvit_backbones.layers.seam import get_dispatcher
from mmvit_backbones.version import __version__

# Module -> distributions that install it: the original and the maintained fork.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
OPTIONAL = ('mmdet', 'mmseg', 'mmpretrain')
MODELS = ('twins_svt_small', 'xcit_nano_12_p16')


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        subject: What was looked at.
        state: What was found.
        remedy: What to do about it; empty where all is well.
    """

    subject: str
    state: str
    remedy: str = ''


def attempt(call: Callable[[], object]) -> str:
    """Return why a call fails, in one line; empty if it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            call()
    except Exception as error:
        return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
    return ''


def installed(module: str) -> dict[str, str]:
    """Return distribution -> version of all that install a module."""
    found = {}
    for name in DISTRIBUTIONS[module]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_torch() -> Iterator[Finding]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU only'
    yield Finding('torch', f'{torch.__version__}, {device}')
    failure = attempt(lambda: torch.zeros(1).numpy())
    if failure:
        yield Finding('numpy', failure, "torch before 2.3 needs NumPy 1: pip install 'numpy<2'")
    failure = attempt(lambda: import_module('torchvision'))
    if failure.startswith('ModuleNotFoundError'):
        yield Finding('torchvision', 'not installed; mmpretrain needs it')
    elif failure:
        remedy = 'install torch and torchvision anew, both from the same source'
        yield Finding('torchvision', failure, remedy)
    else:
        yield Finding('torchvision', version('torchvision'))


def check_module(module: str) -> Finding:
    """Check that one distribution installs a module and that it imports beside the others."""
    found = installed(module)
    state = ' and '.join(f'{name} {number}' for name, number in found.items())
    if not found and module in OPTIONAL:
        return Finding(module, 'not installed')
    if len(found) > 1:
        remedy = f'both install the module {module}: uninstall both, then install one'
        return Finding(module, state, remedy)
    failure = attempt(lambda: import_module(module))
    if 'pkg_resources' in failure:
        return Finding(module, failure, "pip install 'setuptools<82'")
    if failure:
        return Finding(
            module, f'{state}, {failure}', 'see the table of versions in docs/install.md'
        )
    return Finding(module, state)


def run_nms() -> None:
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1].tolist()
    if kept != [0, 2]:
        raise RuntimeError(f'NMS kept boxes {kept}, expected [0, 2]')


def check_operators() -> Iterator[Finding]:
    missing = attempt(lambda: import_module('mmcv._ext'))
    if missing.startswith('ModuleNotFoundError'):
        remedy = (
            'install mmcv with operators, see docs/install.md' if installed('mmdet') else ''
        )  # only detectors need them
        yield Finding('mmcv operators', 'none; mmdet needs them, mmseg and mmpretrain not', remedy)
    elif missing:
        remedy = 'this mmcv was built for another torch: install the one for yours'
        yield Finding('mmcv operators', missing, remedy)
    else:
        failure = attempt(run_nms)
        remedy = 'compile mmcv anew for this torch' if failure else ''
        yield Finding('mmcv operators', failure or 'load, NMS works', remedy)


def run_network(name: str) -> None:
    create_model(name)(torch.zeros(1, 3, 64, 64))


def check_networks() -> Iterator[Finding]:
    if get_dispatcher() is None:
        yield Finding('kernels', 'off: MMVIT_KERNELS=reference')
    else:
        note = '' if HAS_CUSTOM_OPS else '; those that need torch 2.4 step aside'
        yield Finding('kernels', f'on: {", ".join(KERNEL_NAMES)}{note}')
    for name in MODELS:
        failure = attempt(partial(run_network, name))
        remedy = 'please report this, with all lines above' if failure else ''
        yield Finding(name, failure or 'works', remedy)


def check_all() -> list[Finding]:
    return [
        Finding('mmvit_backbones', f'{__version__}, Python {sys.version.split()[0]}'),
        *check_torch(),
        *(check_module(module) for module in DISTRIBUTIONS),
        *check_operators(),
        *check_networks(),
    ]


def main() -> None:
    findings = check_all()
    for finding in findings:
        print(f'{finding.subject:18}{finding.state}')
        if finding.remedy:
            print(f'{"":18}-> {finding.remedy}')
    problems = sum(bool(finding.remedy) for finding in findings)
    if problems:
        sys.exit(f'{problems} problem{"s" if problems > 1 else ""}; docs/install.md has more')
    print('all is well')


if __name__ == '__main__':
    main()
