"""Photographs: decoding, and the names of those below a folder.

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
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from depthjepa.data.samples import UnreadableImage

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
    return decode_with_tag(path)[0]


def decode_with_tag(path: Path) -> tuple[UInt8[Tensor, "3 h w"], int]:
    """Read an image file like `decode`, and say by which EXIF orientation it was turned (see `orientation`)."""
    return _decoded(path, str(path))


def decode_bytes(content: bytes, name: str) -> UInt8[Tensor, "3 h w"]:
    """Read the content of an image file like `decode`; `name` is for the message of `UnreadableImage`."""
    return _decoded(io.BytesIO(content), name)[0]


def _decoded(file: Path | io.BytesIO, name: str) -> tuple[UInt8[Tensor, "3 h w"], int]:
    try:
        with Image.open(file) as image:
            tag = orientation(image)  # before it is loaded: a TIFF is turned then, and its tag is gone
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(image if image.mode == "RGB" else _as_rgb(image))
    except UnidentifiedImageError as fault:  # whose message names an object in memory, another one each time
        raise UnreadableImage(f"{name}: it is no image, or of an unknown format") from fault
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {fault_line(fault)}") from fault
    return torch.from_numpy(pixels).permute(2, 0, 1), tag  # a view: colours side by side are resized faster


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, 2 to 8 for one that has to be turned (see `upright`); 1: upright, or untagged."""
    return _known(image.getexif())


def tag_of(path: Path) -> int:
    """EXIF orientation told from the head of a file alone; 1 where it cannot be."""
    try:
        with Image.open(path) as image:
            return _known(Image.Image.getexif(image))  # PNG's own reads the whole file for a tag at its end
    except DECODING_FAULTS:
        return 1


def _known(exif: Image.Exif) -> int:
    tag = exif.get(ExifTags.Base.Orientation, 1)
    return tag if tag in range(1, 9) else 1


def upright(values: np.ndarray, tag: int) -> np.ndarray:
    """Turn the rows and columns of an array [h, w] as an EXIF orientation says; one of 5 to 8 swaps its sides."""
    if tag >= 5:
        values = values.T
    if tag in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if tag in (2, 3, 6, 7) else values


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image as `decode` gives it, told from the head of the file; None where it cannot be."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            on_its_side = orientation(image) >= 5 and image.format != "TIFF"  # Pillow tells the upright size of a TIFF
    except DECODING_FAULTS:
        return None
    return (width, height) if on_its_side else (height, width)


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
    """Return the images below `folder` at any depth as sorted relative paths; hidden ones are ignored.

    Raises `PermissionError` for a folder that may not be read; such folders below it are passed over.
    """

    def refused(fault: OSError) -> None:
        if isinstance(fault, PermissionError) and Path(fault.filename) == folder:
            raise fault

    names = []
    for place, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        names += [
            (below / name).as_posix() for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return sorted(names)


def sub_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders right below `folder`; hidden ones are ignored."""
    return sorted(place.name for place in folder.iterdir() if place.is_dir() and place.name[0] != ".")


def packed(names: Iterable[str]) -> np.ndarray:
    """Put file names in one array of bytes: workers share it, where a list would be copied page by page."""
    return np.array([os.fsencode(name) for name in names])
