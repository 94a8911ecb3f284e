"""Convert weights of Twins-SVT or XCiT from any source's names to any other's."""

from __future__ import annotations

import argparse
import sys

from mmvit_backbones.checkpoints.description import DIALECTS
from mmvit_backbones.checkpoints.writing import convert_file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='SRC', help='checkpoint: a path or a URL')
    parser.add_argument(
        'destination',
        metavar='DST',
        help='file to write; .safetensors unless it ends in .pth, as load_from of MMEngine needs',
    )
    parser.add_argument(
        '--to', choices=DIALECTS, default='ours', help='names to give (default: ours)'
    )
    parser.add_argument(
        '--arch', help='architecture the weights must have, such as twins_svt_small (default: any)'
    )
    return parser.parse_args()


if __name__ == '__main__':
    try:
        written, conversion = convert_file(**vars(parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print(conversion)
    for key in conversion.dropped:
        print(f'  dropped {key}')
    print(f'wrote {written}')
