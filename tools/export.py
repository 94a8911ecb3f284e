"""Write a model to a file that runs without this package, and compare it with the model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmvit_backbones import export


def sizes(text: str) -> tuple[int, int, int]:
    """Parse HxW or BxHxW."""
    numbers = [int(part) for part in text.split('x')]
    if len(numbers) not in (2, 3):
        raise argparse.ArgumentTypeError(f'a size is HxW or BATCHxHxW, got {text!r}')
    batch, height, width = [1, *numbers][-3:]
    return batch, height, width


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='a name of list_models(), or a config (.py)')
    parser.add_argument('out', type=Path, help='file to write: .onnx, .pt2 or .xml')
    parser.add_argument('--format', choices=export.FORMATS, default='onnx')
    parser.add_argument('--checkpoint', help='weights: a file, an address, a name of the zoo')
    parser.add_argument('--num-classes', type=int, help='of a classifier by name')
    parser.add_argument(
        '--backbone-only', action='store_true', help="of a config's model: no neck and head"
    )
    parser.add_argument(
        '--attention',
        choices=export.ATTENTIONS,
        default='fused',
        help='explicit: as matrix products and softmax, for runtimes that fail on fused attention',
    )
    parser.add_argument(
        '--size', type=sizes, default=(1, 512, 512), metavar='HxW', help='what it is meant for'
    )
    parser.add_argument('--static', action='store_true', help='for one image of that size only')
    parser.add_argument(
        '--check',
        type=sizes,
        nargs='*',
        metavar='[Bx]HxW',
        help='sizes to compare at, by default five; none leaves it out',
    )
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, help='largest error over the largest value, or 1'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.model.endswith('.py'):
        source = export.source_from_config(args.model, args.checkpoint, args.backbone_only)
    else:
        source = export.source_from_name(args.model, args.num_classes, args.checkpoint)
    size = args.size[1:]
    export.export_model(source, args.out, args.format, size, args.attention, not args.static)
    print(f'wrote {args.out}, {export.exported_bytes(args.out) / 1e6:.1f} MB')
    if args.check is None:
        smallest = (1, source.min_size, source.min_size)
        dynamic = [(1, 512, 512), (1, 224, 224), (3, 97, 131), (2, 320, 65), smallest]
        args.check = [args.size] if args.static else dynamic
    checks = export.verify(source.model, args.out, args.check)
    print(export.format_checks(checks))
    if any(check.error > args.tolerance * max(1.0, check.largest) for check in checks):
        raise ValueError(f'the file differs from the model by more than {args.tolerance:g}')


if __name__ == '__main__':
    try:
        main()
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f'error: {error}')
