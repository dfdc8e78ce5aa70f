"""Folders of photographs: decoding, class folders with their subsets, flat folders.

Every image becomes upright 8-bit RGB: the EXIF rotation is applied, grey and palette images are expanded, CMYK
is converted, transparent pixels are laid over white, and 16-bit grey is scaled from its 16 bits instead of
clipped. Pillow reads them all: torchvision's decoders are up to twice as fast on JPEG, but deprecated.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.faults import BadInput, nearest

Split = Literal["train", "val"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# What Pillow's decoders are known to raise on damaged files.
DECODING_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode(path: Path) -> UInt8[Tensor, "3 h w"]:
    """Read an image file as upright RGB, uint8.

    Raises `UnreadableImage` with the name and the reason.
    """
    return _decoded(path, str(path))


def decode_bytes(content: bytes, name: str) -> UInt8[Tensor, "3 h w"]:
    """Read the content of an image file like `decode`; `name` is for the message of `UnreadableImage`."""
    return _decoded(io.BytesIO(content), name)


def _decoded(file: Path | io.BytesIO, name: str) -> UInt8[Tensor, "3 h w"]:
    try:
        with Image.open(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(image if image.mode == "RGB" else _as_rgb(image))
    except UnidentifiedImageError as fault:  # whose message names an object in memory, another one each time
        raise UnreadableImage(f"{name}: it is no image, or of an unknown format") from fault
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {fault_line(fault)}") from fault
    return torch.from_numpy(pixels).permute(2, 0, 1)  # a view: colours side by side are resized faster


def fault_line(fault: BaseException) -> str:
    """Return the first line of a fault's message, or its name if it has none."""
    return (str(fault) or type(fault).__name__).splitlines()[0]


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("a floating-point image, whose range is unknown")
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("an integer image beyond 16 bits, whose range is unknown")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def image_names(folder: Path) -> list[str]:
    """Return the images below `folder` at any depth as sorted relative paths; hidden ones are ignored."""
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        names += [
            (below / name).as_posix() for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return sorted(names)


def sub_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders right below `folder`; hidden ones are ignored."""
    return sorted(place.name for place in folder.iterdir() if place.is_dir() and place.name[0] != ".")


def layout_of(folder: Path) -> Literal["classes", "flat", "rgbd", "shards"]:
    """Tell from what is in a folder how it is to be read."""
    if folder.suffix == ".tar" and folder.is_file():
        return "shards"
    if not folder.is_dir():
        if folder.exists():
            raise BadInput(f"data.root={folder} is a file, not a folder")
        parent = folder.parent
        beside = [str(parent / name) for name in sub_folders(parent)] if parent.is_dir() else []
        raise BadInput(f"data.root: there is no folder {folder}{nearest(str(folder), [*beside, 'scenes'])}")
    if _has_rgbd_splits(folder) or is_flat_rgbd(folder):
        return "rgbd"
    if (folder / "train").is_dir() and sub_folders(folder / "train"):
        return "classes"
    if any(any(folder.glob(place)) for place in ("*.tar", "train/*.tar", "val/*.tar", "validation/*.tar")):
        return "shards"
    return "flat"


def is_flat_rgbd(folder: Path) -> bool:
    """Whether a folder holds `rgb` and `depth` itself, not sorted into `train` and `val`."""
    return not _has_rgbd_splits(folder) and all((folder / part).is_dir() for part in ("rgb", "depth"))


def _has_rgbd_splits(folder: Path) -> bool:
    return any((folder / split / "rgb").is_dir() for split in ("train", "val"))


def packed(names: Iterable[str]) -> np.ndarray:
    """Put file names in one array of bytes: workers share it, where a list would be copied page by page."""
    return np.array([os.fsencode(name) for name in names])


class FlatFolder:
    """All images below a folder, in the order of their paths, without labels or depth.

    Where the folder holds both `train` and `val`, each split reads its own; else every split is all images. Without a
    split, all images are read whatever the folder holds.
    """

    classes: tuple[str, ...] = ()
    has_depth = False

    def __init__(self, root: Path, split: Split | None = None) -> None:
        self.name = str(root)
        self._root = root
        apart = split is not None and (root / "train").is_dir() and (root / "val").is_dir()
        within = root / split if split is not None and apart else root
        names = image_names(within)
        if not names:
            raise BadInput(f"{within} holds no images (accepted: {' '.join(SUFFIXES)})")
        self._names = packed((within / name).relative_to(root).as_posix() for name in names)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of image `index` below the folder."""
        return os.fsdecode(self._names[index])

    def sample(self, index: int) -> Sample:
        """Decode image `index`; raises `UnreadableImage`."""
        name = self.name_of(index)
        return Sample(image=decode(self._root / name), depth=None, label=-1, name=name)


class ClassFolder:
    """Images sorted into classes: `SPLIT/CLASS/*`, at any depth below the class.

    `classes` takes the first N classes in sorted order, or the named ones in the order given; the classes are
    those of `train`, so that labels agree between the splits. `images_per_class` takes at most the first N
    images of each class, in the order of their paths, of `train` alone: the validation images stay
    comparable.

    Raises `BadInput` for an unknown class, too many classes, and a class without images.
    """

    has_depth = False

    def __init__(
        self,
        root: Path,
        split: Split,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
    ) -> None:
        self.name = str(root)
        self._root = root
        if not (root / split).is_dir():
            raise BadInput(f"{root} is a class folder without {split}/")
        self.classes = _chosen_classes(root, classes)
        if classes is None and (extra := set(sub_folders(root / split)) - set(self.classes)):
            raise BadInput(f"{root / split} has classes that train has not: {', '.join(sorted(extra)[:3])}")
        names: list[str] = []
        labels: list[int] = []
        for label, word in enumerate(self.classes):
            place = f"{split}/{word}"
            if not (found := image_names(root / place)):
                raise BadInput(
                    f"class {word!r} has no images in {root / split} (accepted: {' '.join(SUFFIXES)}): "
                    f"remove its folder, or name the other classes in data.classes"
                )
            if split == "train":
                found = found[:images_per_class]
            names += [f"{place}/{name}" for name in found]
            labels += [label] * len(found)
        self._names = packed(names)
        self.labels: Int64[np.ndarray, " images"] = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of image `index` below the folder."""
        return os.fsdecode(self._names[index])

    def sample(self, index: int) -> Sample:
        """Decode image `index`; raises `UnreadableImage`."""
        name = self.name_of(index)
        image = decode(self._root / name)
        return Sample(image=image, depth=None, label=int(self.labels[index]), name=name)


def _chosen_classes(root: Path, classes: int | tuple[str, ...] | None) -> tuple[str, ...]:
    there = sub_folders(root / "train")
    if classes is None:
        return tuple(there)
    if isinstance(classes, int):
        if classes > len(there):
            raise BadInput(f"data.classes={classes}, but {root / 'train'} holds {len(there)} classes")
        return tuple(there[:classes])
    for word in classes:
        if word not in there:
            raise BadInput(
                f"data.classes: no class {word!r} in {root / 'train'}{nearest(word, there)}; "
                f"it holds {len(there)}: {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}"
            )
    return classes
