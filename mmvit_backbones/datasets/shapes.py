"""Scenes of coloured shapes on textured backgrounds, each a pure function of its seed.

Each class has its own range of hues, which a small network learns within minutes; one shape in
sixteen has any hue, so that the outline tells more. Size and background say nothing of the class.
A scene holds what detection, instance and semantic segmentation need: later shapes cover earlier
ones, and every mask is the part that stays visible.

Legend: H and W are the image's height and width in pixels.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

# In alphabetical order, the order in which readers of class folders number them.
SHAPE_CLASSES = ('circle', 'ring', 'square', 'triangle')
STUFF_CLASSES = ('background',)
SEGMENTATION_CLASSES = STUFF_CLASSES + SHAPE_CLASSES
SEGMENTATION_PALETTE = ((90, 90, 90), (230, 80, 60), (240, 190, 40), (60, 170, 90), (60, 110, 220))

UNLABELLED = 0
MIN_SIDE = 48

SceneKind = Literal['usual', 'crowded', 'empty']
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Uint8Array = npt.NDArray[np.uint8]

_SUPERSAMPLING = 4
_MIN_DIAMETER = 16
_MAX_TURN = math.radians(20)
_MIN_VISIBLE_SHARE = 0.5
# Circumradius by corner count, so that the classes have about the area of a circle of radius 1.
_CORNER_RADIUS = {3: 1.45, 4: 1.25}
_RING_HOLE = 0.55
_HUE_SPREAD = 0.09  # to both sides, in turns; the classes' hues lie a quarter turn apart
_STRANGE_HUE_SHARE = 1 / 16


@dataclass(frozen=True)
class Instance:
    """One shape, or a group of tiny shapes of one class that are not told apart.

    Attributes:
        label: Index into `SHAPE_CLASSES`.
        mask: Visible pixels (H, W).
        is_crowd: Whether it is a group, what COCO marks with `iscrowd=1`.
    """

    label: int
    mask: BoolArray
    is_crowd: bool


@dataclass(frozen=True)
class Scene:
    """A picture with its annotations.

    Attributes:
        image: RGB (H, W, 3).
        instances: From the rearmost to the foremost; at least half of each shows.
        label_map: Per pixel (H, W) 0 for unlabelled, else 1 + the index into
            `SEGMENTATION_CLASSES`. Unlabelled are the pixels that an outline crosses, which mix
            the colours of both sides.
    """

    image: Uint8Array
    instances: tuple[Instance, ...]
    label_map: Uint8Array


def draw_scene(seed: int, size: tuple[int, int] = (128, 160), kind: SceneKind = 'usual') -> Scene:
    """Draw one scene.

    Args:
        seed: Any integer from 0; the same arguments always give the same scene.
        size: Height and width of the image, in pixels, each from 48.
        kind: `usual` has one to six shapes, 16 pixels wide up to half the image's shorter side;
            `crowded` has up to twelve shapes, mostly small, and one group of tiny ones; `empty` is
            only background.

    Returns:
        The scene; its shapes may overlap and may be cut by the image's edge.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if kind not in get_args(SceneKind):
        raise ValueError(f'kind must be one of {get_args(SceneKind)}, got {kind!r}')
    canvas = _Canvas(seed, size)
    rng, short_side = canvas.rng, min(size)
    if kind == 'usual':
        for _ in range(rng.integers(1, 7)):
            diameter = math.exp(rng.uniform(math.log(_MIN_DIAMETER), math.log(short_side / 2)))
            canvas.add_shape(int(rng.integers(len(SHAPE_CLASSES))), diameter)
    elif kind == 'crowded':
        canvas.add_group(int(rng.integers(len(SHAPE_CLASSES))))
        for _ in range(rng.integers(8, 13)):
            diameter = rng.uniform(_MIN_DIAMETER, max(_MIN_DIAMETER, short_side / 4))
            canvas.add_shape(int(rng.integers(len(SHAPE_CLASSES))), diameter)
    return canvas.to_scene()


def draw_portrait(seed: int, label: int, size: tuple[int, int] = (128, 160)) -> Scene:
    """Draw an image that one large shape dominates, with up to two small shapes beside it.

    Args:
        seed: Any integer from 0; the same arguments always give the same scene.
        label: Class of the large shape, an index into `SHAPE_CLASSES`.
        size: Height and width of the image, in pixels, each from 48.

    Returns:
        The scene; its first instance is the large shape.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if not 0 <= label < len(SHAPE_CLASSES):
        raise ValueError(f'label must be from 0 to {len(SHAPE_CLASSES) - 1}, got {label}')
    canvas = _Canvas(seed, size)
    rng, short_side = canvas.rng, min(size)
    canvas.add_shape(label, rng.uniform(0.5, 0.75) * short_side)
    for _ in range(rng.integers(0, 3)):
        diameter = rng.uniform(0.1, 0.2) * short_side
        canvas.add_shape(int(rng.integers(len(SHAPE_CLASSES))), diameter)
    return canvas.to_scene()


class _Canvas:
    """A picture in the making: colours so far, and which shape owns each pixel."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        if seed < 0:
            raise ValueError(f'seed must be at least 0, got {seed}')
        if len(size) != 2 or min(size) < MIN_SIDE:
            raise ValueError(f'size must be a height and a width from {MIN_SIDE} px, got {size}')
        self.rng = np.random.default_rng(seed)
        self.size = size
        first = self.rng.uniform(40, 215, 3)
        second = np.clip(first + self.rng.uniform(-45, 45, 3), 0, 255)
        weight = _draw_texture(self.rng, size)[..., None]
        self.pixels: FloatArray = (first + weight * (second - first)).astype(np.float32)
        self.background_colours = [first, second]
        self.shape_colours: list[npt.NDArray[np.float64]] = []
        self.owner = np.zeros(size, np.int64)  # 0 background, i + 1 the i-th instance
        self.is_mixed = np.zeros(size, np.bool_)
        self.labels: list[int] = []
        self.is_crowd: list[bool] = []
        self.full_areas: list[int] = []  # pixels in the image before others cover them

    def add_shape(self, label: int, diameter: float) -> None:
        """Add a shape in front, or none if every spot tried would hide an earlier one too much."""
        number = len(self.labels) + 1
        for _ in range(20):
            # Lets the edge cut off a part, always the smaller one.
            margin = 0.35 * diameter
            centre = tuple(self.rng.uniform(margin, side - margin) for side in self.size)
            coverage = self._cover(label, diameter, centre)
            owner = np.where(coverage >= 0.5, number, self.owner)
            visible = np.bincount(owner.ravel(), minlength=number + 1)[1:number]
            if np.all(visible >= _MIN_VISIBLE_SHARE * np.array(self.full_areas)):
                self._paint(coverage, number, label)
                self._note(label, is_crowd=False)
                return

    def add_group(self, label: int) -> None:
        """Add a dozen or more tiny shapes of one class, close together, as one instance."""
        spread = 0.35 * min(self.size)
        corner = [self.rng.uniform(0, side - spread) for side in self.size]
        number = len(self.labels) + 1
        for _ in range(self.rng.integers(12, 21)):
            centre = tuple(low + self.rng.uniform(0.1, 0.9) * spread for low in corner)
            self._paint(self._cover(label, self.rng.uniform(5, 8), centre), number, label)
        self._note(label, is_crowd=True)

    def to_scene(self) -> Scene:
        grain = self.rng.normal(0, 4, self.pixels.shape)
        image = np.clip(np.rint(self.pixels + grain), 0, 255).astype(np.uint8)
        class_of_owner = np.array([0, *(len(STUFF_CLASSES) + label for label in self.labels)])
        label_map = (1 + class_of_owner[self.owner]).astype(np.uint8)
        label_map[self.is_mixed] = UNLABELLED
        instances = tuple(
            Instance(label, self.owner == number, is_crowd)
            for number, (label, is_crowd) in enumerate(
                zip(self.labels, self.is_crowd, strict=True), 1
            )
        )
        return Scene(image, instances, label_map)

    def _cover(self, label: int, diameter: float, centre: tuple[float, ...]) -> FloatArray:
        """Share of each pixel (H, W) that a shape with a random turn covers, in [0, 1]."""
        turn = self.rng.uniform(-_MAX_TURN, _MAX_TURN)
        return _draw_coverage(SHAPE_CLASSES[label], diameter / 2, turn, centre, self.size)

    def _paint(self, coverage: FloatArray, number: int, label: int) -> None:
        colour = self._pick_colour(label)
        self.shape_colours.append(colour)
        self.pixels += coverage[..., None] * (colour.astype(np.float32) - self.pixels)
        self.owner[coverage >= 0.5] = number
        is_touched = coverage > 0.1
        self.is_mixed[is_touched] = coverage[is_touched] < 0.9

    def _note(self, label: int, is_crowd: bool) -> None:
        """Take down the instance that was painted last."""
        self.labels.append(label)
        self.is_crowd.append(is_crowd)
        self.full_areas.append(int((self.owner == len(self.labels)).sum()))

    def _pick_colour(self, label: int) -> npt.NDArray[np.float64]:
        """The one of some random colours that stands out best from what is there already."""
        hues = label / len(SHAPE_CLASSES) + self.rng.uniform(-_HUE_SPREAD, _HUE_SPREAD, 12)
        if self.rng.uniform() < _STRANGE_HUE_SHARE:
            hues = self.rng.uniform(0, 1, 12)
        saturations, values = self.rng.uniform(0.5, 1, 12), self.rng.uniform(0.35, 1, 12)
        hsv = np.stack((hues % 1, saturations, values), axis=-1)
        candidates = 255 * np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])
        # Shapes meet the background far more often than each other.
        to_background = _distances(candidates, self.background_colours).min(axis=1)
        if not self.shape_colours:
            return candidates[to_background.argmax()]
        to_shapes = _distances(candidates, self.shape_colours).min(axis=1)
        return candidates[np.minimum(to_background, 2 * to_shapes).argmax()]


def _distances(
    candidates: npt.NDArray[np.float64], colours: list[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    differences = candidates[:, None] - np.stack(colours)
    return np.sqrt((differences**2).sum(axis=-1))


def _draw_texture(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    """Weight of the second background colour (H, W), in [0, 1]: stripes, gradient or clouds."""
    height, width = size
    kind = rng.choice(('stripes', 'gradient', 'clouds'))
    if kind == 'clouds':
        cells = rng.uniform(0, 1, (height // 12, width // 12)).astype(np.float32)
        clouds = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(clouds, np.float32)
    angle = rng.uniform(0, math.pi)
    rows, columns = np.mgrid[:height, :width]
    along = columns * math.cos(angle) + rows * math.sin(angle)
    if kind == 'gradient':
        weight = (along - along.min()) / (along.max() - along.min())
    else:
        weight = 0.5 + 0.5 * np.sin(2 * math.pi * (along / rng.uniform(6, 20) + rng.uniform()))
    return weight.astype(np.float32)


def _draw_coverage(
    name: str, radius: float, turn: float, centre: tuple[float, ...], size: tuple[int, int]
) -> FloatArray:
    """Share of each pixel (H, W) that the shape covers, from a larger black and white drawing."""
    height, width = size
    y, x = (_SUPERSAMPLING * value for value in centre)
    radius *= _SUPERSAMPLING
    drawing = Image.new('L', (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(drawing)
    if name in ('circle', 'ring'):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if name == 'ring':
            hole = _RING_HOLE * radius
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        corners = {'triangle': 3, 'square': 4}[name]
        radius *= _CORNER_RADIUS[corners]
        # Turned by half a step, so that a flat side lies at the bottom.
        angles = [turn + math.pi * (0.5 + (2 * i + 1) / corners) for i in range(corners)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        pen.polygon(points, fill=255)
    return np.asarray(drawing.reduce(_SUPERSAMPLING), np.float32) / np.float32(255)
