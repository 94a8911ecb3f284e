"""Make the synthetic shapes data: COCO, ADE20K and ImageNet folders in one place."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmvit_backbones.datasets import FORMATS, write_shapes


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f'expected HxW, such as 128x160, got {text!r}')
    return int(height), int(width)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('root', type=Path, help='folder to write; shapes data there is replaced')
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=list(FORMATS))
    parser.add_argument('--train', type=int, default=800, help='training images of each format')
    parser.add_argument('--val', type=int, default=100, help='validation images of each format')
    parser.add_argument(
        '--size',
        type=parse_size,
        default='128x160',
        metavar='HxW',
        help='largest height and width; sides vary by a fifth, some images stand upright',
    )
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other scenes')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        is_new = write_shapes(**vars(args), progress=True)
    except (ValueError, FileExistsError) as error:
        raise SystemExit(f'make_shapes: {error}') from None
    action = 'wrote' if is_new else 'found the same data already in'
    print(f'{action} {args.root}: {args.train} training and {args.val} validation images each of')
    for name in FORMATS:
        if name in args.formats:
            print(f'  {args.root / name}')


if __name__ == '__main__':
    main()
