"""One entry for training and testing with mmdet, mmseg and mmpretrain.

A config names its toolkit by `default_scope`; the flags mean what they mean in that toolkit's own
`tools/train.py` and `tools/test.py`. A config is Python code that runs here: use only files you
trust. Checkpoints are data and need no trust, see docs/security.md.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvit_backbones.checkpoints.errors import CheckpointError
from mmvit_backbones.checkpoints.reading import ALLOW_UNSAFE
from mmvit_backbones.engine.finite_loss_hook import NonFiniteError

# Devices for which mmengine has mixed precision and processes that train together.
ACCELERATORS = ('cuda', 'npu', 'mlu', 'musa')


class LaunchError(ValueError):
    """A wrong command line, a file or a package that is not there: nothing was run."""


@dataclass(frozen=True)
class Toolkit:
    """What differs between the toolkits when they are started.

    Args:
        tta_model: Wrapper that merges the predictions of test-time augmentation, for configs
            that name none.
        dump_metric: Metric that writes the predictions to one pickle; empty if `IoUMetric`
            writes them into a folder.
    """

    tta_model: dict[str, Any] = field(hash=False)
    dump_metric: str


TOOLKITS = {
    'mmdet': Toolkit(
        tta_model={
            'type': 'DetTTAModel',
            'tta_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100},
        },
        dump_metric='DumpDetResults',
    ),
    'mmseg': Toolkit(tta_model={'type': 'SegTTAModel'}, dump_metric=''),
    'mmpretrain': Toolkit(tta_model={'type': 'AverageClsScoreTTA'}, dump_metric='DumpResults'),
}


def launch_train(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
) -> None:
    """Train the model of a config with its toolkit.

    Args:
        config: Path of the config.
        work_dir: Folder for logs and checkpoints. Without it the config's own `work_dir`, else
            `./work_dirs/<config name>`.
        resume: Checkpoint to continue from, or 'auto' for the latest whole one in the work folder.
        amp: Train with automatic mixed precision.
        auto_scale_lr: Scale the learning rate by the real over the config's batch size.
        cfg_options: Dotted config keys and the values that replace theirs.
        launcher: Who starts the processes: 'none', 'pytorch', 'slurm' or 'mpi'.
        local_rank: Number of this process on its machine, if the environment does not say it.

    Raises:
        LaunchError: If a file, the toolkit or the device for a flag is missing, or the config has
            nothing that a flag could change.
        CheckpointError: If a checkpoint is refused, damaged, or of another model.
        NonFiniteError: If the loss becomes NaN or infinite.
        KeyboardInterrupt: At SIGINT and SIGTERM.
    """
    read_checkpoints_safely()
    cfg = load_config(config, work_dir, cfg_options, launcher, local_rank)
    if amp:
        enable_amp(cfg)
    if auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else existing_checkpoint(resume)
    with stoppable():
        build_runner(cfg).train()


def launch_test(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    show_dir: str | None = None,
    out: str | None = None,
    tta: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config with its toolkit.

    Args:
        config: Path of the config.
        checkpoint: Path or URL of the weights.
        work_dir: Folder for the log and the metrics; see `launch_train`.
        show_dir: Folder for pictures of the predictions; mmdet makes it inside the run's folder.
        out: Where to write the predictions: a `.pkl` file, or for mmseg a folder of images.
        tta: Test-time augmentation: the config's `tta_model` and `tta_pipeline`, else flips.
        cfg_options: Dotted config keys and the values that replace theirs.
        launcher: Who starts the processes: 'none', 'pytorch', 'slurm' or 'mpi'.
        local_rank: Number of this process on its machine, if the environment does not say it.

    Returns:
        The metrics by name.

    Raises:
        LaunchError: If a file or the toolkit is missing, `out` has another ending than `.pkl` or
            `.pickle` where it is a file, or the config has nothing that a flag could change.
    """
    read_checkpoints_safely()
    cfg = load_config(config, work_dir, cfg_options, launcher, local_rank)
    cfg.load_from = existing_checkpoint(checkpoint)
    if show_dir is not None:
        enable_pictures(cfg, show_dir)
    if tta:
        enable_tta(cfg)
    if out is not None:
        dump_predictions(cfg, out)
    with stoppable():
        metrics: dict[str, float] = build_runner(cfg).test()
    return metrics


def read_checkpoints_safely() -> None:
    """Make every later `torch.load` of this process refuse pickles that run code.

    MMEngine reads checkpoints by our reader, see `mmengine_loader`. This variable, which torch
    reads at each load, is for code that calls `torch.load` itself. A value that the user set stays,
    and so does torch's own where the user trusts a file.
    """
    if os.environ.get(ALLOW_UNSAFE) != '1':
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM, by which schedulers end a job, interrupt as Ctrl-C does.

    Files that are being written are then removed, instead of being left half written.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_tool(launch: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Run a command-line tool, and end it with one line where the user can mend what is wrong.

    Args:
        launch: `launch_train` or `launch_test`.
        arguments: Its arguments.
    """
    try:
        launch(**arguments)
    except (LaunchError, CheckpointError, NonFiniteError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        # A full disk, a quota, a folder without permission: whatever was to be written.
        sys.exit(f'error: {error.filename or "a file"}: {error.strerror or error}')
    except KeyboardInterrupt as interrupt:
        name = str(interrupt) or signal.SIGINT.name
        print(f'stopped by {name}; --resume goes on from the last checkpoint', file=sys.stderr)
        sys.exit(128 + signal.Signals[name])


def load_config(
    path: str,
    work_dir: str | None,
    cfg_options: dict[str, Any] | None,
    launcher: str,
    local_rank: int,
) -> Config:
    """Read a config, apply the flags that training and testing share, check the toolkit.

    Args:
        path: Path of the config.
        work_dir: See `launch_train`.
        cfg_options: See `launch_train`.
        launcher: See `launch_train`.
        local_rank: See `launch_train`.

    Raises:
        LaunchError: If the file or the toolkit is missing, or a launcher is named where mmengine
            has no accelerator to train on.
    """
    if not Path(path).is_file():
        raise LaunchError(f'config must be an existing file, got {path!r}')
    cfg = Config.fromfile(path)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    check_toolkit(cfg)
    if launcher != 'none' and get_device() not in ACCELERATORS:
        raise LaunchError(
            f'launcher {launcher!r} needs an accelerator ({", ".join(ACCELERATORS)}), this machine '
            f"has {get_device()!r}: use launcher 'none'"
        )
    cfg.launcher = launcher
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    if cfg.default_scope == 'mmpretrain':
        set_dataloader_defaults(cfg)
    return cfg


def check_toolkit(cfg: Config) -> None:
    """Check that the toolkit a config was written for is known and installed.

    Args:
        cfg: The config, with its `default_scope`.

    Raises:
        LaunchError: If it is not.
    """
    scope = cfg.get('default_scope')
    if scope not in TOOLKITS:
        raise LaunchError(
            f'default_scope of a config must be one of {", ".join(TOOLKITS)}, got {scope!r}'
        )
    if find_spec(scope) is None:
        raise LaunchError(
            f'{scope}, which the config needs, is not installed: '
            "pip install 'mmvit-backbones[onedl]'"
        )
    if scope == 'mmdet' and find_spec('mmcv._ext') is None:
        raise LaunchError(
            'mmdet needs mmcv with compiled operators, and this mmcv has none: install torch '
            'first, then mmcv with pip install --no-build-isolation'
        )


def set_dataloader_defaults(cfg: Config) -> None:
    """Give the data loaders what mmpretrain's own tools give them and its configs leave out.

    Args:
        cfg: The config, changed in place.
    """
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(key)
        if loader is not None:
            loader.setdefault('pin_memory', get_device() in ACCELERATORS)
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))


def existing_checkpoint(source: str) -> str:
    """Return a checkpoint's path or URL as it came.

    Args:
        source: Path, or URL, which is not looked at.

    Raises:
        LaunchError: If it is a path where no file is.
    """
    if '://' not in source and not Path(source).is_file():
        raise LaunchError(f'checkpoint must be an existing file or a URL, got {source!r}')
    return source


def enable_amp(cfg: Config) -> None:
    """Switch a config to automatic mixed precision.

    Args:
        cfg: The config, changed in place.

    Raises:
        LaunchError: If there is no accelerator, or the config has a wrapper of its own kind.
    """
    if get_device() not in ACCELERATORS:
        raise LaunchError(
            f'amp needs an accelerator ({", ".join(ACCELERATORS)}), this machine has '
            f'{get_device()!r}: train without it'
        )
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise LaunchError(f'amp needs optim_wrapper.type OptimWrapper, got {wrapper!r}')
    if wrapper == 'AmpOptimWrapper':
        print_log('The config trains with mixed precision already.', logger='current')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Let the runner scale the learning rate by the batch size.

    Args:
        cfg: The config, changed in place.

    Raises:
        LaunchError: If the config does not say for which batch size its learning rate is.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise LaunchError('auto_scale_lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True


def enable_pictures(cfg: Config, show_dir: str) -> None:
    """Let the toolkit's visualization hook paint predictions.

    Args:
        cfg: The config, changed in place.
        show_dir: Folder for the pictures.

    Raises:
        LaunchError: If the config has no visualization hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise LaunchError('show_dir needs a visualization hook in default_hooks of the config')
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=show_dir)
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True)
        cfg.visualizer.save_dir = show_dir
    else:
        hook.update(enable=True, out_dir=show_dir)


def enable_tta(cfg: Config) -> None:
    """Put test-time augmentation around the model and into the test data.

    Args:
        cfg: The config, changed in place.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    tta_model = cfg.get('tta_model') or TOOLKITS[cfg.default_scope].tta_model
    cfg.model = ConfigDict(**deepcopy(tta_model), module=cfg.model)
    dataset.pipeline = cfg.get('tta_pipeline') or flip_pipeline(dataset.pipeline)


def flip_pipeline(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a test pipeline yield each image as it is and mirrored.

    Args:
        pipeline: Transforms of the test data; the last one packs the inputs.

    Returns:
        The same transforms with the last ones inside a `TestTimeAug`. Annotations are loaded
        after the flip, so that they are not flipped for the metric.
    """
    names = [transform['type'] for transform in pipeline]
    split = names.index('LoadAnnotations') if 'LoadAnnotations' in names else len(names) - 1
    tail = deepcopy(pipeline[split:])
    if 'meta_keys' in tail[-1]:
        tail[-1]['meta_keys'] = (*tail[-1]['meta_keys'], 'flip', 'flip_direction')
    flips = [{'type': 'RandomFlip', 'prob': prob} for prob in (0.0, 1.0)]
    augmented = {'type': 'TestTimeAug', 'transforms': [flips, *([step] for step in tail)]}
    return [*deepcopy(pipeline[:split]), augmented]


def dump_predictions(cfg: Config, out: str) -> None:
    """Let the evaluator write the predictions down.

    Args:
        cfg: The config, changed in place.
        out: See `launch_test`.

    Raises:
        LaunchError: If `out` must be a pickle and has another ending, or if mmseg's config has no
            `IoUMetric`, which does the writing.
    """
    metrics = cfg.test_evaluator
    metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    dump_metric = TOOLKITS[cfg.default_scope].dump_metric
    if dump_metric:
        if Path(out).suffix not in ('.pkl', '.pickle'):
            raise LaunchError(f'out must end in .pkl or .pickle, got {out!r}')
        metrics.append(ConfigDict(type=dump_metric, out_file_path=out))
    else:
        writers = [metric for metric in metrics if metric['type'].endswith('IoUMetric')]
        if not writers:
            raise LaunchError('out needs an IoUMetric in test_evaluator of the config')
        for writer in writers:
            writer['output_dir'] = out
    cfg.test_evaluator = metrics


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for.

    Args:
        cfg: The whole config.
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
