"""Evaluate a checkpoint with mmdet, mmseg or mmpretrain, whichever its config names."""

from __future__ import annotations

import argparse

from mmvit_backbones.engine.launch import run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='CONFIG --help lists the flags of its toolkit.'
    )
    parser.add_argument('config', metavar='CONFIG', help='path of the config')
    parser.add_argument(
        'flags',
        metavar='...',
        nargs=argparse.REMAINDER,
        help="the checkpoint and that toolkit's own testing flags",
    )
    return parser.parse_args()


if __name__ == '__main__':
    run_tool('test', **vars(parse_args()))
