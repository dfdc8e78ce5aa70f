"""What the table of a data set of the hub holds: which columns are read, and what stands in a row of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Int64

from depthjepa.data.config import HUB_COLUMNS
from depthjepa.data.contents import PIECE, file_marks, file_sizes, mark_of
from depthjepa.data.images import fault_line
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput, nearest

NONE = "none"  # of a column: leave it out
IMAGE, LABEL, DEPTH = ("image", "img", "rgb", "photo"), ("label", "labels"), ("depth", "depth_map")


@dataclass(frozen=True, slots=True)
class Columns:
    image: str
    label: str | None
    depth: str | None


def columns_of(
    root: str, features: Mapping[str, Any], image: str | None, label: str | None, depth: str | None
) -> Columns:
    """The columns that are read; raises `BadInput` for a named one that does not fit, and where several might."""
    from datasets import ClassLabel

    key_of_image, key_of_label, key_of_depth = HUB_COLUMNS
    maps = [name for name in features if is_image(features[name]) or _is_array(features[name])]
    if depth is None:
        maps = [name for name in maps if name.lower() in DEPTH and name != image]
    found_depth = _column(root, key_of_depth, "depth (images or arrays)", maps, DEPTH, depth)
    pictures = [name for name in features if is_image(features[name]) and name != found_depth]
    found = _column(root, key_of_image, "images", pictures, IMAGE, image)
    if found is None:
        kinds = ", ".join(f"{name} ({getattr(each, 'dtype', type(each).__name__)})" for name, each in features.items())
        raise BadInput(f"{root} has no column of images; its columns: {kinds}")
    classes = [name for name in features if isinstance(features[name], ClassLabel)]
    return Columns(found, _column(root, key_of_label, "classes", classes, LABEL, label), found_depth)


def _column(root: str, key: str, what: str, there: list[str], usual: tuple[str, ...], asked: str | None) -> str | None:
    """The column that a key names; else the only one, or the only one that is called as usual; None: there is none."""
    if asked is not None:
        if asked in there:
            return asked
        if asked == NONE and key != HUB_COLUMNS[0]:
            return None
        held = f"it has {', '.join(there)}" if there else "it has none"
        raise BadInput(f"data.{key}={asked}: {root} has no such column of {what}{nearest(asked, there)}; {held}")
    named = [name for name in there if name.lower() in usual]
    likely = named or there
    if len(likely) > 1:
        raise BadInput(
            f"{root} has several columns of {what} ({', '.join(likely)}): choose one, data.{key}={likely[0]}"
        )
    return likely[0] if likely else None


def is_image(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


def _is_array(feature: Any) -> bool:
    """Whether a column holds arrays of two dimensions: of one shape, or lists of lists of numbers."""
    from datasets import Array2D

    if isinstance(feature, Array2D):
        return True
    inner = getattr(getattr(feature, "feature", None), "feature", None)
    return getattr(inner, "dtype", "").startswith(("float", "uint", "int"))


def labels_of(
    root: str, split: str, table: Any, column: str | None
) -> tuple[tuple[str, ...], Int64[np.ndarray, " rows"]]:
    """Names of the classes, and the label of each row: the whole column, read once. -1 without labels."""
    if column is None:
        return (), np.full(len(table), -1, dtype=np.int64)
    stored = table.data.column(column)
    labels = stored.fill_null(-1).to_numpy().astype(np.int64)
    if not (labels >= 0).any():
        return (), np.full(len(table), -1, dtype=np.int64)
    if (labels < 0).any():
        row = int(labels.argmin())
        raise BadInput(
            f"{root}/{split}/{row} has no label in the column {column}, but other rows have: "
            f"data.{HUB_COLUMNS[1]}={NONE} reads all of them without"
        )
    return tuple(table.features[column].names), labels


def content_of(value: Mapping[str, Any] | None, name: str, folder: Path | None) -> tuple[bytes, str]:
    """The bytes of an image of a row, and its name for messages: with its path where it is a file of its own."""
    if value is not None and value["bytes"] is not None:
        return value["bytes"], name
    if value is None or not value["path"]:
        raise UnreadableImage(f"{name}: the row holds none")
    path = Path(value["path"])
    inside = folder is not None and path.is_relative_to(folder.resolve())
    shown = path.relative_to(folder.resolve()) if folder is not None and inside else path
    try:
        return path.read_bytes(), f"{name}: {shown}"
    except OSError as fault:
        raise UnreadableImage(f"{name}: {shown}: {fault.strerror or fault_line(fault)}") from fault


def is_whole(values: np.ndarray) -> bool:
    """Whether depth is whole numbers of 16 bits, as in a PNG."""
    return values.dtype.kind == "u"


def array_of(value: Any) -> np.ndarray | None:
    """An array of a row, which is stored as a list of lists of numbers; None where they make no array."""
    import pyarrow

    rows = (value.value if isinstance(value, pyarrow.ExtensionScalar) else value).values
    if rows.null_count or len(set(rows.value_lengths().to_pylist())) != 1:
        return None
    values: np.ndarray = rows.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(rows), -1)


def _parts(column: Any, field: str) -> Iterator[Any]:
    """One field of a column of images, chunk by chunk, as it lies on the disk."""
    from pyarrow import compute

    for chunk in column.chunks:
        yield compute.struct_field(chunk, field)


def file_names(column: Any) -> np.ndarray | None:
    """Names of the files that images came from, without their folders, as bytes; None where none has one."""
    parts = list(_parts(column, "path"))
    if all(part.null_count == len(part) for part in parts):
        return None
    names = [np.array([os.fsencode(PurePath(path or "").name) for path in part.to_pylist()]) for part in parts]
    return np.concatenate(names)


def sizes_of(column: Any) -> Int64[np.ndarray, " rows"]:
    """Bytes of each image, told without reading it; -1 where there is none."""
    from pyarrow import compute

    lengths = [compute.binary_length(part).fill_null(-1).to_numpy() for part in _parts(column, "bytes")]
    return _with_files(np.concatenate(lengths).astype(np.int64), column, file_sizes)


def marks_of(column: Any) -> Int64[np.ndarray, " rows"]:
    """A number for each row, by pieces of its bytes or of its array; -1 where there is none."""
    import pyarrow

    if not pyarrow.types.is_struct(column.type):
        arrays = (array_of(value) if value.is_valid else None for value in column)
        return np.array([-1 if each is None else _mark(pyarrow.py_buffer(each)) for each in arrays], dtype=np.int64)
    stored = (value for part in _parts(column, "bytes") for value in part)
    marks = np.array([_mark(value.as_buffer()) if value.is_valid else -1 for value in stored], dtype=np.int64)
    return _with_files(marks, column, file_marks)


def _mark(buffer: Any) -> int:
    return mark_of(buffer.size, lambda place: memoryview(buffer)[place : place + PIECE])


def _with_files(
    found: Int64[np.ndarray, " rows"], column: Any, ask: Callable[[Path, list[str]], Int64[np.ndarray, " files"]]
) -> Int64[np.ndarray, " rows"]:
    """What was found of rows, and where that is -1 what is told of the file that the row names."""
    if (found >= 0).all():
        return found
    paths = np.concatenate([part.to_numpy(zero_copy_only=False) for part in _parts(column, "path")])
    files = np.flatnonzero((found < 0) & np.array([bool(path) for path in paths]))
    found[files] = ask(Path("/"), [path.lstrip("/") for path in paths[files]])
    return found
