"""Photographs, decoded.

Every image becomes upright 8-bit RGB: the EXIF rotation is applied, grey and palette images are expanded, CMYK
is converted, transparent pixels are laid over white, and 16-bit grey is scaled from its 16 bits instead of
clipped. Pillow reads them all, and says what is wrong with those that cannot be read; torchcodec, where it is
installed, gives the very same pixels of plain JPEGs, 1.2 to 2.6 times as fast.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError, features
from torch import Tensor

from depthjepa.data.samples import UnreadableImage

Split = Literal["train", "val"]

HEIC = (".heic", ".heif")  # what iPhones write; Pillow reads them with a plug-in
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jfif", ".jpe"),
    *(suffix for suffix, codec in ((".avif", "avif"), (".jp2", "jpg_2000")) if features.check(codec)),
    *(HEIC if importlib.util.find_spec("pillow_heif") else ()),
)

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
    return decode_bytes_with_tag(content, name)[0]


def decode_bytes_with_tag(content: bytes, name: str) -> tuple[UInt8[Tensor, "3 h w"], int]:
    """Read the content of an image file like `decode_with_tag`."""
    return _decoded(io.BytesIO(content), name)


def _decoded(file: Path | io.BytesIO, name: str) -> tuple[UInt8[Tensor, "3 h w"], int]:
    try:
        with _quietly(), _open(file, name) as image:
            tag = orientation(image)
            if tag == 1 and (fast := _plain_jpeg(image, file)) is not None:
                return fast, tag
            image.load()  # which turns a TIFF, and takes its tag
            # By hand: `ImageOps.exif_transpose` writes the rest of EXIF anew, which fails where that is broken.
            stored = np.array(image if image.mode == "RGB" else _as_rgb(image))
            pixels = np.ascontiguousarray(upright(stored, orientation(image)))
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {why_unreadable(file, fault)}") from fault
    return torch.from_numpy(pixels).permute(2, 0, 1), tag  # a view: colours side by side are resized faster


def _plain_jpeg(image: Image.Image, file: Path | io.BytesIO) -> UInt8[Tensor, "3 h w"] | None:
    """What torchcodec makes of an upright JPEG; None where Pillow is to read it, or to say what is wrong with it."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or (decode := _jpeg_decoder()) is None:
        return None
    try:
        pixels: Tensor = decode(file.getvalue() if isinstance(file, io.BytesIO) else file)
    except RuntimeError:  # a damaged file
        return None
    return pixels if tuple(pixels.shape) == (3, image.height, image.width) else None


@functools.cache
def _jpeg_decoder() -> Callable[[bytes | Path], Tensor] | None:
    if importlib.util.find_spec("torchcodec") is None:
        return None
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as fault:  # built for another torch
        warnings.warn(f"torchcodec is not used, it cannot be loaded: {fault_line(fault)}", stacklevel=2)
        return None
    decoder: Callable[[bytes | Path], Tensor] | None = getattr(decoders, "decode_jpeg", None)  # since 0.16
    return decoder


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, 2 to 8 for one that has to be turned (see `upright`); 1: upright, or untagged."""
    return _told(image.getexif)


def tag_of(file: Path | io.BytesIO, name: str | None = None) -> int:
    """EXIF orientation told from the head of a file, or of content of that `name`, alone; 1 where it cannot be."""
    try:
        with _quietly(), _open(file, str(file) if name is None else name) as image:
            return _told(partial(Image.Image.getexif, image))  # PNG's own reads the whole file for a tag at its end
    except DECODING_FAULTS:
        return 1


def _told(exif: Callable[[], Image.Exif]) -> int:
    """What EXIF says of the camera's side, 1 where it says nothing: a broken block must not cost the photograph."""
    try:
        tag = exif().get(ExifTags.Base.Orientation, 1)
        return tag if tag in range(1, 9) else 1
    except Exception:  # whatever its bytes lead to
        return 1


def upright(values: np.ndarray, tag: int) -> np.ndarray:
    """Turn the rows and columns of an array [h, w, ...] as an EXIF orientation says; one of 5 to 8 swaps its sides."""
    if tag >= 5:
        values = values.swapaxes(0, 1)
    if tag in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if tag in (2, 3, 6, 7) else values


def _quietly() -> contextlib.AbstractContextManager[object]:
    """What Pillow warns of (broken EXIF, many pixels) names no file, and the image is read or named as unreadable."""
    return warnings.catch_warnings(action="ignore")


def _open(file: Path | io.BytesIO, name: str) -> Image.Image:
    if name.lower().endswith(HEIC):
        importlib.import_module("pillow_heif").register_heif_opener()
    return Image.open(file)


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image as `decode` gives it, told from the head of the file; None where it cannot be."""
    try:
        with _quietly(), _open(path, path.name) as image:
            width, height = image.size
            on_its_side = orientation(image) >= 5 and image.format != "TIFF"  # Pillow tells that upright
    except DECODING_FAULTS:
        return None
    return (width, height) if on_its_side else (height, width)


def why_unreadable(file: Path | io.BytesIO, fault: BaseException) -> str:
    """Why Pillow could not read an image file."""
    if not isinstance(fault, UnidentifiedImageError):
        return fault_line(fault)
    # Its message names an object in memory, another one each time.
    empty = not (file.stat().st_size if isinstance(file, Path) else file.getbuffer().nbytes)
    return "it is empty, 0 bytes" if empty else "it is no image, or of an unknown format"


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
