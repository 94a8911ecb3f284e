"""Draw what a network sees: feature maps, attention, receptive fields, predictions, curves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from mmvit_backbones import visualization as vis

Pictures = Iterator[tuple[str, Figure]]


def pyramid(args: argparse.Namespace) -> Pictures:
    subject, samples = load(args)
    for sample in samples:
        yield sample.name, vis.draw_pyramid(subject.backbone, sample)


def class_attention(args: argparse.Namespace) -> Pictures:
    subject, samples = load(args, classifier=True)
    for sample in samples:
        yield sample.name, vis.draw_class_attention(subject.model, sample, args.layer)


def channel_attention(args: argparse.Namespace) -> Pictures:
    subject, samples = load(args)
    for sample in samples:
        yield (
            sample.name,
            vis.draw_channel_attention(
                subject.backbone, sample, args.block, args.head, args.channel
            ),
        )


def token_attention(args: argparse.Namespace) -> Pictures:
    subject, samples = load(args)
    for sample in samples:
        yield sample.name, vis.draw_token_attention(subject.backbone, sample, args.pixel)


def receptive_field(args: argparse.Namespace) -> Pictures:
    subject, samples = load(args)
    same_size = [sample for sample in samples if sample.size == samples[0].size]
    yield 'images', vis.draw_receptive_field(subject.backbone, same_size)


def grad_cam(args: argparse.Namespace) -> Pictures:
    subject, samples = load(args, classifier=True)
    for sample in samples:
        yield (
            sample.name,
            vis.draw_grad_cam(subject.model, sample, args.classes, subject.classes),
        )


def predictions(args: argparse.Namespace) -> Pictures:
    subject = vis.load_subject(args.model, args.checkpoint)
    found = vis.predict(subject, args.number)
    yield Path(args.model).stem, vis.draw_predictions(found, subject.classes, args.score)


def curves(args: argparse.Namespace) -> Pictures:
    yield 'runs', vis.draw_curves(args.work_dirs, args.names)


def load(
    args: argparse.Namespace, classifier: bool = False
) -> tuple[vis.Subject, list[vis.Sample]]:
    subject = vis.load_subject(args.model, args.checkpoint, classifier)
    if args.checkpoint is None:
        print('warning: without --checkpoint the weights are random', file=sys.stderr)
    files = vis.image_files(args.image)
    return subject, [
        vis.read_sample(file, args.long_side, subject.mean, subject.std) for file in files
    ]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')

    def add(draw: Callable[[argparse.Namespace], Pictures], help: str) -> argparse.ArgumentParser:
        kind = kinds.add_parser(
            draw.__name__.replace('_', '-'),
            help=help,
            description=help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        kind.set_defaults(draw=draw)
        kind.add_argument('--out', type=Path, default=Path('work_dirs/pictures'), help='folder')
        return kind

    def add_of_images(
        draw: Callable[[argparse.Namespace], Pictures], help: str
    ) -> argparse.ArgumentParser:
        kind = add(draw, help)
        kind.add_argument('model', help='name of list_models(), or a config')
        kind.add_argument('image', help='image, or a folder of images')
        kind.add_argument('--checkpoint', help='file, address or name of list_pretrained()')
        kind.add_argument('--long-side', type=int, default=512, help='shrink larger images to this')
        return kind

    add_of_images(pyramid, 'feature maps as colours')
    add_of_images(receptive_field, 'effective receptive field of each feature map')
    kind = add_of_images(token_attention, 'window and global attention of a pixel, Twins-SVT')
    kind.add_argument('--pixel', type=int, nargs=2, metavar=('X', 'Y'), help='the centre if unset')
    kind = add_of_images(class_attention, 'attention of the class token, XCiT classifiers')
    kind.add_argument('--layer', type=int, default=-1, help='class-attention layer from 0')
    kind = add_of_images(channel_attention, 'attention between channels, XCiT')
    kind.add_argument('--block', type=int, default=-1, help='block from 0')
    kind.add_argument('--head', type=int, help='from 0; the most decided one if unset')
    kind.add_argument('--channel', type=int, help='from 0; the most decided one if unset')
    kind = add_of_images(grad_cam, 'evidence for classes or detections (package grad-cam)')
    kind.add_argument('--classes', type=int, nargs='+', help='the best three if unset')
    kind = add(predictions, 'predictions beside the ground truth of the test data')
    kind.add_argument('model', metavar='config', help='a config with test data')
    kind.add_argument('checkpoint', help='file or address')
    kind.add_argument('--number', type=int, default=4, help='images')
    kind.add_argument('--score', type=float, default=0.3, help='least score of a detection')
    kind = add(curves, 'losses and metrics of one or several work folders')
    kind.add_argument('work_dirs', nargs='+', metavar='work_dir')
    kind.add_argument('--names', nargs='+', help='scalars; the main ones if unset')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for name, figure in args.draw(args):
            path = args.out / f'{args.kind}_{name}.png'
            figure.savefig(path)
            print(path)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
