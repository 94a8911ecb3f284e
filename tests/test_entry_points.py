"""Whatever reads a checkpoint, in this package and in the toolkits, runs nothing of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint

import mmvit_backbones
from mmvit_backbones.checkpoints import CheckpointError, Pretrained
from mmvit_backbones.checkpoints.mmengine_loader import drop_code, why_config_is_code
from mmvit_backbones.datasets import write_shapes
from tests.checkpoints import payloads

ROOT = Path(__file__).parents[1]
CONFIGS = {
    'mmdet': ROOT / 'configs/shapes/retinanet_twins-svt-toy_fpn_shapes.py',
    'mmseg': ROOT / 'configs/shapes/twins_svt-toy_uperhead_shapes.py',
    'mmpretrain': ROOT / 'configs/shapes/twins-svt-toy_cls_shapes.py',
}
# One of each container, place and kind; `checkpoints/test_unpickling.py` has all combinations. The
# one with `getattr` is run by torch's own safe reader in MMEngine's hands.
PAYLOADS = [
    ('zip', 'meta', 'getattr'),
    ('legacy', 'state_dict', 'reduce'),
    ('tar', 'root', 'inst'),
    ('plain', 'optimizer', 'obj'),
]


def in_scope(scope: str, call: Callable[[], Any]) -> Any:
    with DefaultScope.overwrite_default_scope(scope):
        return call()


def toolkit_api(scope: str, checkpoint: str) -> Any:
    config = str(CONFIGS[scope])
    if scope == 'mmdet':
        from mmdet.apis import init_detector

        return init_detector(config, checkpoint, device='cpu')
    if scope == 'mmseg':
        from mmseg.apis import init_model

        return init_model(config, checkpoint, device='cpu')
    from mmpretrain import get_model

    return get_model(config, pretrained=checkpoint)


def inferencer(scope: str, checkpoint: str) -> Any:
    config = str(CONFIGS[scope])
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer(config, checkpoint, device='cpu')
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer

        return MMSegInferencer(config, checkpoint, device='cpu')
    from mmpretrain import ImageClassificationInferencer

    return ImageClassificationInferencer(config, pretrained=checkpoint, device='cpu')


def initialize(checkpoint: str) -> None:
    """MMEngine's own `Pretrained`, of a config's `init_cfg`."""
    from mmengine.model import BaseModule, initialize

    initialize(BaseModule(), {'type': 'Pretrained', 'checkpoint': checkpoint})


def start_runner(checkpoint: str, resume: bool) -> None:
    """`load_from` and `--resume` of a run."""
    from tests.engine.test_safe_checkpoint_hook import make_runner

    runner = make_runner(Path(checkpoint).parent / 'run', epochs=1, resume=resume)
    runner._load_from = checkpoint
    runner.train()


ENTRIES: dict[str, Callable[[str], Any]] = {
    'load_checkpoint': lambda path: mmvit_backbones.load_checkpoint(MODEL, path),
    'Pretrained': lambda path: Pretrained(path)(MODEL),
    "MMEngine's Pretrained": initialize,
    "MMEngine's load_checkpoint": lambda path: load_checkpoint(MODEL, path),
    'CheckpointLoader': lambda path: CheckpointLoader.load_checkpoint(path),
    'file:': lambda path: CheckpointLoader.load_checkpoint(f'file://{path}'),
    'load_from': lambda path: start_runner(path, resume=False),
    'resume': lambda path: start_runner(path, resume=True),
    **{f'API of {scope}': lambda path, scope=scope: toolkit_api(scope, path) for scope in CONFIGS},
    **{
        f'inferencer of {scope}': lambda path, scope=scope: in_scope(
            scope, lambda: inferencer(scope, path)
        )
        for scope in CONFIGS
    },
}
MODEL = mmvit_backbones.create_model('xcit_nano_12_p16')


@pytest.mark.filterwarnings('ignore')  # the toolkits' own
@pytest.mark.parametrize('entry', ENTRIES)
def test_no_entry_point_runs_code(tmp_path: Path, entry: str) -> None:
    marker = tmp_path / 'made'
    for container, place, gadget in PAYLOADS:
        path = tmp_path / 'bad.pth'
        payloads.write_payload(path, marker, container, place, gadget, protocol=2)
        with pytest.raises(CheckpointError, match='refused'):
            ENTRIES[entry](str(path))
        assert not marker.exists()


# Runs tools one after another, each as if started alone: most of their time goes into imports.
IN_TURN = """
import json, runpy, sys, traceback
for command in json.loads(sys.argv[1]):
    print('command', command, flush=True)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name='__main__')
        print('ended well')
    except BaseException as error:
        print(f'{type(error).__name__}: {error}', flush=True)
"""


def toolkits_tool(scope: str, name: str) -> Path:
    spec = importlib.util.find_spec(scope)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / '.mim/tools' / name


def test_no_tool_runs_code(tmp_path: Path) -> None:
    """Ours and the toolkits' own, without our tools' environment variable."""
    write_shapes(tmp_path / 'data/shapes', train=2, val=1)
    marker = tmp_path / 'made'
    bad = payloads.write_payload(tmp_path / 'bad.pth', marker, 'zip', 'meta', 'getattr', 2)
    options = ['--cfg-options', *(f'{s}_dataloader.num_workers=0' for s in ('train', 'test'))]
    options += [f'{s}_dataloader.persistent_workers=False' for s in ('train', 'test')]
    commands = []
    for scope, config in CONFIGS.items():
        for folder in (toolkits_tool(scope, '.'), ROOT / 'tools'):
            commands.append([folder / 'test.py', config, bad, *options])
        # mmseg's tool resumes from `load_from`.
        resume = ['--resume', *options, f'load_from={bad}']
        resume = resume if scope == 'mmseg' else ['--resume', bad, *options]
        commands.append([ROOT / 'tools/train.py', config, *resume])
    commands.append([ROOT / 'tools/convert_checkpoint.py', bad, 'out'])
    commands.append([ROOT / 'tools/publish_model.py', bad, 'out'])
    (tmp_path / 'in_turn.py').write_text(IN_TURN)
    words = json.dumps([[str(word) for word in command] for command in commands])
    printed = subprocess.run(
        [sys.executable, 'in_turn.py', words],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout
    assert not marker.exists()
    for text in printed.split('command [')[1:]:
        assert 'bytes): refused, it holds' in text.splitlines()[-1], text
        assert 'ended well' not in text


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ("a = dict(b=[1, (2.0, None), -3], type='Net', c={'type': 'mmdet.Net'})", ''),
        ('import os\na = 1', 'more than assignments'),
        ("a = open('x')", 'calls functions'),
        ("a = dict([('type', 'Net')])", 'calls functions'),
        ('a = [x for x in y]', 'computes values'),
        ("a = f'{b}'", 'computes values'),
        ("a = dict(type='os.path.join')", 'type'),
        ("a = {'type': b}", 'type'),
        ("_base_ = ['/tmp/other.py']", 'has _base_'),
        ("custom_imports = dict(imports=['evil'])", 'has custom_imports'),
        ('a = (', 'is not Python'),
        (3, 'is no text'),
    ],
)
def test_config_in_a_checkpoint(text: Any, problem: str) -> None:
    """MMEngine runs it, to resume or to infer without a config file."""
    assert problem in why_config_is_code(text)
    assert bool(problem) == bool(why_config_is_code(text))
    checkpoint = {
        'meta': {'cfg': text, 'config': text, 'epoch': 1},
        'message_hub': {'runtime_info': {'cfg': text}},
    }
    drop_code(checkpoint, 'file')
    assert ('cfg' in checkpoint['meta']) == ('config' in checkpoint['meta']) == (not problem)
    assert ('cfg' in checkpoint['message_hub']['runtime_info']) == (not problem)
    assert checkpoint['meta']['epoch'] == 1


@pytest.mark.parametrize('config', CONFIGS.values())
def test_our_configs_stay_in_checkpoints(config: Path) -> None:
    assert why_config_is_code(Config.fromfile(config).pretty_text) == ''


def test_code_in_meta_is_not_run_by_resume(tmp_path: Path) -> None:
    from tests.engine.test_safe_checkpoint_hook import make_runner

    make_runner(tmp_path, epochs=1).train()
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    content['meta']['config'] = f'import os\nos.mkdir({str(tmp_path / "made")!r})'
    torch.save(content, tmp_path / 'epoch_1.pth')
    runner: Runner = make_runner(tmp_path, epochs=2, resume=True)
    runner.train()
    assert runner.epoch == 2
    assert not (tmp_path / 'made').exists()


def test_devices(tmp_path: Path) -> None:
    """Tensors go where MMEngine wants them; a function or nothing means the CPU."""
    torch.save({'state_dict': {'a': torch.ones(2)}, 'b': [(torch.ones(1),)]}, tmp_path / 'a.pth')
    name = str(tmp_path / 'a.pth')
    for location in (None, 'cpu', torch.device('cpu'), lambda storage, _: storage):
        assert CheckpointLoader.load_checkpoint(name, location)['state_dict']['a'].is_cpu
    moved = CheckpointLoader.load_checkpoint(name, 'meta')
    assert moved['state_dict']['a'].is_meta
    assert moved['b'][0][0].is_meta
