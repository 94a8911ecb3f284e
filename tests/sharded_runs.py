"""Train toys of the toolkits in two processes, under DDP and with sharded parameters, and compare.

python -m tests.sharded_runs mmdet mmseg mmpretrain
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.runner import Runner
from torch import distributed, multiprocessing

from tests.kills import CONFIGS, Runs

HOOKS = {'ddp': [], 'sharded': [dict(type='mmvit_backbones.FullyShardHook')]}
PROCESSES = 2
TOLERANCE = 1e-4  # of the largest difference between weights after a few steps in float32


def train(rank: int, folder: str, toolkit: str) -> None:
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = '0'
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=PROCESSES
    )
    importlib.import_module(f'{toolkit}.apis')
    os.chdir(folder)
    for name, hooks in HOOKS.items():
        cfg = Config.fromfile('workers_0.py')
        cfg.launcher = 'pytorch'
        # MMEngine names a GPU here.
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
        cfg.work_dir = name
        cfg.experiment_name = f'{name}_{rank}'
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), *hooks]
        cfg.randomness = dict(seed=0)
        Runner.from_cfg(cfg).train()
        barrier()
    distributed.destroy_process_group()


def compare(toolkit: str) -> float:
    """Return the largest difference between the last checkpoints of the two runs."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(toolkit, Path(folder))
        multiprocessing.spawn(train, args=(folder, toolkit), nprocs=PROCESSES)
        ends = [torch.load(f'{folder}/{name}/{runs.last}', weights_only=False) for name in HOOKS]
    one, other = (end['state_dict'] for end in ends)
    assert one.keys() == other.keys()
    assert ends[0]['optimizer']['state'].keys() == ends[1]['optimizer']['state'].keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('toolkits', nargs='+', choices=CONFIGS)
    largest = {toolkit: compare(toolkit) for toolkit in parser.parse_args().toolkits}
    print('largest differences between weights:', largest)
    sys.exit(max(largest.values()) > TOLERANCE)


if __name__ == '__main__':
    main()
