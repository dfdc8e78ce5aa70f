"""Images and data sets of a few files, made from integer formulas; nothing of the package is needed to make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, height: int = 56, width: int = 72) -> np.ndarray:
    """Triangle waves whose direction and period depend on the number, and a light box, uint8 [height, width, 3]."""
    row, column = np.mgrid[:height, :width]
    waves = [column * (2 + number % 5) + row * factor + 37 * number * factor for factor in (1, 3, 5)]
    pixels = np.stack([np.abs(wave % 510 - 255) // 2 for wave in waves], axis=-1).astype(np.uint8)
    pixels[box(number)] = (255, 250 - 10 * (number % 11), 200)
    return pixels


def millimetres(number: int, height: int = 56, width: int = 72) -> np.ndarray:
    """The box before a slanted wall; the first rows are unmeasured (0)."""
    row, column = np.mgrid[:height, :width]
    depth = 4000 - 40 * row + 10 * column
    depth[box(number)] = 1500 + 50 * (number % 11)
    depth[:2] = 0
    return depth.astype(np.uint16)


CLASSES = ("above", "below", "box", "nowhere")


def indices(number: int, height: int = 56, width: int = 72) -> np.ndarray:
    """A class for each pixel: above and below the middle, the box; the first columns are void."""
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[height // 2 :] = CLASSES.index("below")
    labels[box(number)] = CLASSES.index("box")
    labels[:, :2] = 255
    return labels


def box(number: int) -> tuple[slice, slice]:
    """Rows and columns of the box."""
    top, left = 4 + 5 * (number % 5), 3 + 8 * (number % 4)
    return slice(top, top + 28), slice(left, left + 36)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_pairs(root: Path, train_images: int = 24, val_images: int = 8) -> Path:
    """An RGB-D folder."""
    for split, numbers in (("train", range(train_images)), ("val", range(1000, 1000 + val_images))):
        for number in numbers:
            save(root / split / "rgb" / f"{number:04}.png", picture(number))
            save(root / split / "depth" / f"{number:04}.png", millimetres(number))
    return root


def write_labelled(root: Path, train_images: int = 12, val_images: int = 6) -> Path:
    """A labelled folder of four classes, one of which no pixel has."""
    for split, numbers in (("train", range(train_images)), ("val", range(1000, 1000 + val_images))):
        for number in numbers:
            save(root / split / "rgb" / f"{number:04}.png", picture(number))
            save(root / split / "labels" / f"{number:04}.png", indices(number))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def write_classes(root: Path, images: int = 12) -> Path:
    """A class folder of two classes that colour tells apart."""
    for split in ("train", "val"):
        for number in range(images):
            for word, channel in (("red", 0), ("blue", 2)):
                pixels = picture(number if split == "train" else 1000 + number)
                pixels[..., channel] = 255
                save(root / split / word / f"{number:04}.png", pixels)
    return root


def write_flat(root: Path, images: int, size: int = 16) -> Path:
    """A folder of images without labels or depth."""
    for number in range(images):
        save(root / f"{number:04}.png", picture(number, size, size))
    return root
