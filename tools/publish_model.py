"""Strip a training checkpoint to its weights and put a hash into the file's name."""

from __future__ import annotations

import argparse
import sys

from mmvit_backbones.checkpoints.writing import publish_file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='SRC', help='checkpoint: a path or a URL')
    parser.add_argument(
        'destination', metavar='DST', help='file to write: name.pth becomes name-<hash>.pth'
    )
    return parser.parse_args()


if __name__ == '__main__':
    try:
        written = publish_file(**vars(parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'wrote {written}')
