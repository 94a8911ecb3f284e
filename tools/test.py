"""Evaluate a checkpoint with mmdet, mmseg or mmpretrain, whichever its config names."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

from mmvit_backbones.engine import launch_test, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path or URL of the weights')
    parser.add_argument('--work-dir', help='folder for the log and the metrics')
    parser.add_argument(
        '--show-dir',
        help='folder for pictures of the predictions; mmdet makes it inside the work folder',
    )
    parser.add_argument(
        '--out', help='where to write the predictions: a .pkl file, for mmseg a folder of images'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='replace config values, for instance test_dataloader.num_workers=0',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


if __name__ == '__main__':
    run_tool(launch_test, vars(parse_args()))
