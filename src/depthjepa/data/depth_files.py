"""Depth in files beside photographs: what each format holds, and in which unit.

A 16-bit grey PNG has whole units, by default millimetres. TIFF, EXR and NPY files come in metres, centimetres and
millimetres alike, and nothing in them says which, so the unit of those is always to be said: `dataset.json` says it
(`data.dataset_facts`), or the key `data.depth_scale`.
"""

from __future__ import annotations

import importlib.util
import io
import tokenize
import warnings
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.dataset_facts import DATASET, UNITS
from depthjepa.data.images import DECODING_FAULTS, fault_line, orientation, why_unreadable
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput

PNG = ".png"
TIFF = (".tif", ".tiff")
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes, of large files too
EXR, NPY = ".exr", ".npy"

DEPTH_CHANNELS = ("z", "depth")  # of an EXR file that holds others as well; in Blender's, ViewLayer.Depth.Z
# What numpy is known to raise on a damaged file, beside what all decoders do.
READING_FAULTS = (*DECODING_FAULTS, RuntimeError, MemoryError, TypeError, tokenize.TokenError)


def states_no_unit(name: str) -> bool:
    """Whether the unit of a depth file of this name has to be said: of all but PNG."""
    return PurePath(name).suffix.lower() != PNG


def stored_depth(
    file: Path | io.BytesIO, depth_scale: float, name: str | None = None
) -> tuple[Float32[np.ndarray, "h w"], int]:
    """Depth [m] as it lies in a file, 0 = not measured, and the file's EXIF orientation.

    `depth_scale` is file units per metre. Content in memory needs a `name`, whose ending tells the format. Numbers that
    are negative or not finite are not measured. Raises `UnreadableImage` for a damaged file and `BadInput` for one of
    another kind.
    """
    name = str(file) if name is None else name
    suffix = PurePath(name).suffix.lower()
    if suffix == PNG:
        values, tag = _of_png(file, name, f"data.depth_scale ({depth_scale:g})")
        return values.astype(np.float32) / np.float32(depth_scale), tag
    if suffix == EXR:
        assert isinstance(file, Path), "OpenEXR reads no content in memory"
        values = _of_exr(file)
    else:
        values = _of_npy(file, name) if suffix == NPY else _of_tiff(file, name)
    return in_metres(values, depth_scale), 1


def units_of_bytes(content: bytes, name: str) -> tuple[np.ndarray, int]:
    """Depth in units of the file [h, w], whole numbers or floats, and its EXIF orientation, from a file's content.

    A grey PNG of 16 bits, or a TIFF of one channel. `name` is for the messages; raises what `stored_depth` raises.
    """
    file = io.BytesIO(content)
    return (_of_tiff(file, name), 1) if content[:4] in TIFF_MARKS else _of_png(file, name)


def in_metres(values: np.ndarray, depth_scale: float) -> Float32[np.ndarray, "h w"]:
    """Depth [m], 0 = not measured, of an array [h, w] of `depth_scale` units per metre; see `stored_depth`."""
    wide = values.astype(np.result_type(values.dtype.newbyteorder("="), np.float32))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not measured
        metres = (wide / wide.dtype.type(depth_scale)).astype(np.float32)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def refuse_unsaid_unit(first: Path | io.BytesIO, root: Path | str, name: str | None = None) -> None:
    """Raise `BadInput` for depth files whose unit nothing says; `first` is one of them, for its median in each unit.

    Content in memory needs a `name`.
    """
    name = str(first) if name is None else name
    needed = f'write {{"depth_unit": "metres"}} (or {", ".join(word for word in UNITS if word != "metres")}) into'
    try:
        seen = in_each_unit(stored_depth(first, 1.0, name)[0], PurePath(name).name)
    except UnreadableImage:
        seen = ""
    raise BadInput(
        f"{name}: nothing says which unit these depth files are in{seen}: {needed} {root}/{DATASET}, or "
        f"depth_scale there (units per metre), or give data.depth_scale (other than {MILLIMETRES:g}, which is there "
        f"anyway)"
    )


def in_each_unit(values: Float32[np.ndarray, "h w"], name: str) -> str:
    """What the median of a map of unknown unit, 0 = not measured, would be in each, for a message; empty for no map."""
    known = values[values > 0]
    medians = [f"{np.median(known) / scale:.3g} m in {word}" for word, scale in UNITS.items()] if known.size else []
    return f"; the median of {name} would be {', '.join(medians)}" if medians else ""


def refuse_missing_reader(name: str) -> None:
    """Raise `BadInput` where what reads a depth file of this name is not installed."""
    if PurePath(name).suffix.lower() == EXR and importlib.util.find_spec("OpenEXR") is None:
        raise BadInput(f"{name}: EXR files are read by OpenEXR, which is not installed: pip install 'depthjepa[exr]'")


def _of_png(file: Path | io.BytesIO, name: str, units: str = "data.depth_scale") -> tuple[np.ndarray, int]:
    try:
        with Image.open(file) as image:
            mode, values, tag = image.mode, np.array(image), orientation(image)
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {why_unreadable(file, fault)}") from fault
    # Pillow calls 16-bit grey I;16; its versions before 11 call it I.
    if not mode.startswith("I") or image.format != "PNG":
        raise BadInput(
            f"{name} is {image.format} of mode {mode}; depth must be a grey PNG of 16 bits, metres x "
            f"{units}, 0 = invalid (in 8 bits the metres are lost)"
        )
    return values, tag


def _of_tiff(file: Path | io.BytesIO, name: str) -> np.ndarray:
    try:
        # What Pillow warns of names no file, and the file is read or named as unreadable.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            mode, tag, pages = image.mode, orientation(image), getattr(image, "n_frames", 1)
            values = np.array(image)
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {why_unreadable(file, fault)}") from fault
    if image.format != "TIFF" or not (mode == "F" or mode.startswith("I")):
        raise BadInput(f"{name} is {image.format} of mode {mode}; depth must be a TIFF of one channel of 32-bit floats")
    if tag > 1 or pages > 1:
        what = f"has an EXIF rotation ({tag})" if tag > 1 else f"holds {pages} pages"
        raise BadInput(f"{name} {what}: write depth as a TIFF of one page, upright as it lies")
    return values


def _of_exr(path: Path) -> np.ndarray:
    refuse_missing_reader(str(path))
    import OpenEXR

    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels: dict[str, Any] = {name: each.pixels for name, each in file.channels().items()}
    except READING_FAULTS as fault:
        raise UnreadableImage(f"{path}: {fault_line(fault)}") from fault
    named = [name for name in channels if name.rpartition(".")[2].lower() in DEPTH_CHANNELS]
    chosen = list(channels) if len(channels) == 1 else named
    if len(chosen) != 1:
        raise BadInput(
            f"{path} has the channels {', '.join(sorted(channels))}: depth must be the only one, or the one named Z or "
            f"depth"
        )
    return _plain(channels[chosen[0]], str(path), "floats", "f")


def _of_npy(file: Path | io.BytesIO, name: str) -> np.ndarray:
    try:
        values = np.load(file, allow_pickle=False)
    except READING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {fault_line(fault)}") from fault
    return depth_array(values, name)


def depth_array(values: Any, name: str) -> np.ndarray:
    """An array itself where it is [height, width] of floats or of uint16; raises `BadInput` for others."""
    return _plain(values, name, "floats or of uint16", "fu2")


def _plain(values: Any, name: str, wanted: str, kinds: str) -> np.ndarray:
    """An array of rows and columns of the numbers that are `wanted`."""
    numbers = isinstance(values, np.ndarray) and (values.dtype.kind in kinds[:1] or values.dtype.str[1:] in kinds)
    if not isinstance(values, np.ndarray) or not numbers or values.ndim != 2 or not values.size:
        found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else "no array"
        raise BadInput(f"{name} holds {found}; depth must be [height, width] of {wanted}")
    return values
