"""Images, as pixels to show and as the input of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmvit_backbones.checkpoints.description import IMAGENET_MEAN, IMAGENET_STD

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        name: What titles and files call it.
        pixels: RGB values (H, W, 3), uint8.
        mean: Of the channels, for pixels in [0, 1].
        std: Of the channels, for pixels in [0, 1].
    """

    name: str
    pixels: np.ndarray
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    @property
    def input(self) -> Tensor:
        """The normalized image (1, 3, H, W)."""
        pixels = torch.from_numpy(self.pixels.copy()).permute(2, 0, 1)[None] / 255
        return (pixels - as_channels(self.mean)) / as_channels(self.std)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def as_channels(values: Sequence[float]) -> Tensor:
    """Shape values of three channels (1, 3, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def read_sample(
    path: str | Path,
    long_side: int | None = 512,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Sample:
    """Read an image file.

    Args:
        path: The file.
        long_side: Shrink the image to this many pixels on its longer side; None leaves it.
        mean: See `Sample`.
        std: See `Sample`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image that PIL reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'image must be an existing file, got {str(path)!r}')
    try:
        with Image.open(path) as file:
            image = file.convert('RGB')
    except OSError as error:
        raise ValueError(
            f'image must be a file that PIL reads, got {str(path)!r}: {error}'
        ) from None
    if long_side is not None and max(image.size) > long_side:
        ratio = long_side / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return Sample(path.stem, np.asarray(image), mean, std)


def image_files(path: str | Path) -> list[Path]:
    """Return the file itself, or the images of a folder in the order of their names.

    Raises:
        FileNotFoundError: If there is nothing at `path`, or no image in the folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob('*') if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f'image must be a file, or a folder with images ({", ".join(SUFFIXES)}), got '
            f'{str(path)!r}'
        )
    return files
