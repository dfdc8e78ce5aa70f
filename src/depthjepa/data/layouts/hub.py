"""A data set of the Hugging Face hub, or a folder with the files of one: `hub:OWNER/NAME`, `hub:FOLDER`.

The library `datasets` finds, fetches and keeps the files (below `HF_HOME`; `HF_HUB_OFFLINE=1` reads what is kept), and
gives each row from a table on the disk. Images are taken as the bytes or the file that they are stored as, and decoded
as all others are. `:CONFIG` names one of several configurations, `@REVISION` a branch, a tag or a commit. No code of a
data set is run: the library has not done that since its version 4.

Depth is a column of images of 16 bits (whole units, by default millimetres) or of floats, or a column of arrays. The
unit of floats and arrays has to be said: nothing in them says it. A TIFF of 16 bits counts as a PNG: the library itself
writes one for pixels of 16 bits that come from no file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from depthjepa.data.config import HUB_COLUMNS, MILLIMETRES, DataConfig, DepthOrientation
from depthjepa.data.contents import PIECE, file_marks, file_sizes, mark_of
from depthjepa.data.depth_files import depth_array, in_each_unit, in_metres, units_of_bytes
from depthjepa.data.images import Split, decode_bytes_with_tag, fault_line, sub_folders, upright
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.layouts.rgbd import map_tag, refuse_other_size
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.data.subsets import chosen_classes, chosen_images
from depthjepa.faults import BadInput, nearest
from depthjepa.progress import task

START = "hub:"
WRITE = "hub:OWNER/NAME, hub:OWNER/NAME:CONFIG, hub:OWNER/NAME@REVISION or hub:FOLDER"
NONE = "none"  # of a column: leave it out

# What the splits are called, the first one that is there; test data are neither trained on nor judged by.
SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "valid")}
IMAGE, LABEL, DEPTH = ("image", "img", "rgb", "photo"), ("label", "labels"), ("depth", "depth_map")

Units = tuple[np.ndarray, int]  # depth in units of the file [h, w], and its EXIF orientation


class HubImages:
    """The images of one split of a data set of the hub, in the order of its rows, with classes and depth where it has.

    `image`, `label` and `depth` are the columns; None: those that tell themselves by their types and names, `none` (of
    label and depth): leave it out. `depth_scale` is units per metre; `MILLIMETRES`, the default, says nothing of floats
    and arrays. Samples are upright; where one of a pair has an EXIF rotation, `depth_orientation` says how depth lies.
    `classes` takes the first N classes, or the named ones in the order given, `images_per_class` at most the first N
    images of each class, of `train` alone.

    Raises `BadInput` where the data set cannot be read, has no such split, no column of images or several that might be
    meant, where only some images have a label, and where nothing says the unit of depth.
    """

    keeps_samples = False
    knows_focal_length = False
    depth_range = None

    def __init__(
        self,
        root: str,
        split: Split,
        *,
        image: str | None = None,
        label: str | None = None,
        depth: str | None = None,
        depth_scale: float = MILLIMETRES,
        depth_orientation: DepthOrientation | None = None,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
    ) -> None:
        self.name = _name(root)
        self._folder, self.depth_scale, self._orientation = address_of(root).folder, depth_scale, depth_orientation
        splits = splits_of(root)
        if (found := _split(splits, split)) is None:
            raise BadInput(f"{self.name} has no split {' or '.join(SPLITS[split])}; it has {', '.join(splits)}")
        self._split, table = found, splits[found]
        columns = _columns(self.name, table.features, image, label, depth)
        self.image_column, self.depth_column = columns.image, columns.depth
        self.has_depth = self.depth_column is not None
        self._depth_in_images = self.depth_column is not None and _is_image(table.features[self.depth_column])
        self._table = table.select_columns(
            [each for each in (self.image_column, self.depth_column) if each]
        ).with_format("arrow")
        if not len(table):
            raise BadInput(f"{self.name} has no rows in its split {found}")
        self.classes, self.labels = _labels(self.name, found, table, columns.label)
        self._rows = np.arange(len(table), dtype=np.int64)
        if classes is not None or images_per_class is not None:
            self._take(classes, images_per_class if split == "train" else None)
        self._files = _file_names(self._table.data.column(self.image_column))
        self.ignored: Mapping[str, int] = {}
        if split == "train":
            others = [each for each in splits if each not in (found, _split(splits, "val"))]
            unread = [
                each for each in table.column_names if each not in (self.image_column, columns.label, self.depth_column)
            ]
            self.ignored = {f"column {each}": 1 for each in unread} | {f"split {each}": 1 for each in others}
        self.whole_numbers = self._look_at_depth()

    def _take(self, classes: int | tuple[str, ...] | None, at_most: int | None) -> None:
        """Keep the images of some classes."""
        if not self.classes:
            key = "images_per_class" if classes is None else "classes"
            raise BadInput(f"data.{key} needs labels, and {self.name} has no column of classes that is read")
        chosen = chosen_classes(self.classes, classes, self.name)
        self._rows, self.labels = chosen_images(self.labels, [self.classes.index(word) for word in chosen], at_most)
        if classes is not None and (empty := set(range(len(chosen))) - set(self.labels.tolist())):
            raise BadInput(f"class {chosen[min(empty)]!r} has no images in the split {self._split} of {self.name}")
        self.classes = chosen

    def __len__(self) -> int:
        return len(self._rows)

    def name_of(self, index: int) -> str:
        """SPLIT/ROW of image `index`, and the name of its file where it has one."""
        row = int(self._rows[index])
        own = "" if self._files is None else os.fsdecode(self._files[row])
        return f"{self._split}/{row}{'/' * bool(own)}{own}"

    def stamps(self) -> Int64[np.ndarray, "images numbers"]:
        """Bytes of each image and of its depth, and its label.

        Of depth that is all of one size, as what is not compressed is, a checksum of some bytes.
        """
        column = self._table.data.column
        found = [_sizes(column(self.image_column))[self._rows]]
        if self.depth_column is not None:
            sizes = _sizes(column(self.depth_column)) if self._depth_in_images else np.zeros(1)
            found.append((_marks(column(self.depth_column)) if (sizes == sizes[0]).all() else sizes)[self._rows])
        return np.stack([*found, self.labels], axis=1)

    def sample(self, index: int) -> Sample:
        """Decode image `index`, and its depth; raises `UnreadableImage`, and `BadInput` for depth that does not fit."""
        image, depth = self._pair(index)
        return Sample(image=image, depth=depth, label=int(self.labels[index]), name=self.name_of(index))

    def measured(self, index: int) -> tuple[Float32[Tensor, "1 h w"], Float32[Tensor, "1 h w"]]:
        """Depth [m] of image `index` as it is stored, and what counts of it: all; raises what `sample` raises."""
        _, depth = self._pair(index)
        assert depth is not None
        return depth, depth

    def _pair(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], Float32[Tensor, "1 h w"] | None]:
        row = self._table[int(self._rows[index])]
        name = f"{self.name}/{self.name_of(index)}"
        image, tag = decode_bytes_with_tag(*_content(row[self.image_column][0].as_py(), name, self._folder))
        if self.depth_column is None:
            return image, None
        map_name = f"{name}, column {self.depth_column}"
        values, own = self._units(row, map_name)
        if self._depth_in_images and _is_whole(values) != self.whole_numbers:
            others = "whole numbers of 16 bits" if self.whole_numbers else "others"
            raise BadInput(
                f"{map_name} holds {values.dtype}, and the first of the column {others}: give one unit to all"
            )
        paths = Path(name), Path(map_name)  # for messages
        turned = upright(in_metres(values, self.depth_scale), map_tag(paths, (tag, own), self._orientation))
        depth = torch.from_numpy(np.ascontiguousarray(turned))[None]
        refuse_other_size(paths, image, depth, (tag, own))
        return image, depth

    def _units(self, row: Any, name: str) -> Units:
        """Depth of a row in the units that it is stored in, and its EXIF orientation."""
        value = row[self.depth_column][0]
        if not value.is_valid:
            raise UnreadableImage(f"{name}: the row holds none")
        if not self._depth_in_images:
            return depth_array(_array(value), name), 1
        return units_of_bytes(*_content(value.as_py(), name, self._folder))

    def _look_at_depth(self) -> bool:
        """Whether depth is whole numbers in images, by the first map that can be read; refuses an unsaid unit."""
        for row in self._rows if self.has_depth else ():
            name = f"{self.name}/{self._split}/{row}, column {self.depth_column}"
            try:
                values, _ = self._units(self._table[int(row)], name)
            except UnreadableImage:  # training counts and names it
                continue
            except BadInput as fault:
                raise BadInput(f"{fault}; data.hub_depth={NONE} reads the images without it") from fault
            if self._depth_in_images and _is_whole(values):
                return True
            if self.depth_scale == MILLIMETRES:
                raise BadInput(
                    f"{self.name}: nothing says which unit the {values.dtype} of the column {self.depth_column} are in"
                    f"{in_each_unit(in_metres(values, 1.0), f'row {row}')}: give data.depth_scale, units per metre "
                    f"(1000, its default, counts as not said: where they are millimetres, 1000.001)"
                )
            return False
        return True


# which data set -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a data set is: on the hub (its ID), or in a folder; and which part of it."""

    place: str
    config: str | None = None
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder; None for an ID of the hub."""
        is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.place)
        return path_of(self.place) if not is_id or path_of(self.place).is_dir() else None


def address_of(root: str) -> Address:
    """What a root of this layout says; raises `BadInput` for one that says nothing of a data set."""
    text = root.removeprefix(START) if root.startswith(START) else ""
    if text and path_of(text).is_dir():
        return Address(text)
    parts = re.fullmatch(r"([^:@]+)(?::([^:@]+))?(?:@([^:@]+))?", text)
    if parts is None:
        raise BadInput(f"data.root={root} names no data set of the hub: write {WRITE}")
    return Address(*parts.groups())


def _name(root: str) -> str:
    found = address_of(root)
    config, revision = f":{found.config}" if found.config else "", f"@{found.revision}" if found.revision else ""
    return f"{START}{path_of(found.place)}{config}{revision}"


def splits_of(root: str) -> Mapping[str, Any]:
    """The splits of a data set by their names, each a `datasets.Dataset` whose table lies on the disk.

    Raises `BadInput` where the library is missing, nobody answers, or no data set of that name can be read.
    """
    address = address_of(root)
    if address.folder is None:
        return _fetched(address)
    if not address.folder.is_dir():
        parent = address.folder.parent
        beside = [str(parent / name) for name in sub_folders(parent)] if parent.is_dir() else []
        raise BadInput(
            f"data.root={root}: there is no folder {address.folder}{nearest(str(address.folder), beside)}; a data set "
            f"of the hub is OWNER/NAME"
        )
    if address.revision is not None:
        raise BadInput(
            f"data.root={root}: a folder has no revisions; write {root.removesuffix(f'@{address.revision}')}"
        )
    return _opened(address)


@functools.lru_cache
def _fetched(address: Address) -> Mapping[str, Any]:
    """The same of an ID: a process asks the hub once, and what it reads does not change meanwhile."""
    return _opened(address)


def _opened(address: Address) -> Mapping[str, Any]:
    root = f"{START}{address.place}"
    try:
        import datasets
    except ImportError as fault:
        raise BadInput(f"{root} is read by the library datasets: pip install 'depthjepa[hub]'") from fault
    place = address.place if address.folder is None else str(address.folder.resolve())
    saved = [Path(place) / name for name in ("dataset_dict.json", "state.json")]  # by `save_to_disk`
    try:
        with _waiting(datasets, root):
            if address.folder is not None and address.config is None and any(file.is_file() for file in saved):
                found = datasets.load_from_disk(place, keep_in_memory=False)
            else:
                found = datasets.load_dataset(place, address.config, revision=address.revision, keep_in_memory=False)
    except Exception as fault:  # somebody's files behind a network: of httpx, yaml, pyarrow, fsspec, ...
        raise BadInput(f"data.root={root}: {_reason(fault, address)}") from fault
    splits = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    _refuse_other_revision(splits, address)
    return splits


def _refuse_other_revision(splits: Mapping[str, Any], address: Address) -> None:
    """Raise `BadInput` where the library took what it keeps of a data set for another revision, as it does offline."""
    from huggingface_hub import constants

    if address.revision is None:
        return
    kept = Path(constants.HF_HUB_CACHE) / f"datasets--{address.place.replace('/', '--')}" / "refs" / address.revision
    commit = kept.read_text().strip() if kept.is_file() else address.revision
    folders = {Path(file["filename"]).parent.name for each in splits.values() for file in each.cache_files}
    if others := [name for name in folders if re.fullmatch("[0-9a-f]{40}", name) and name != commit]:
        raise BadInput(
            f"{START}{address.place}: the hub does not answer, and what is kept here is of revision {others[0]}, not "
            f"known to be {address.revision}"
        )


def _reason(fault: Exception, address: Address) -> str:
    """Why the library could not read a data set, in its words."""
    whole = f"{fault} ({fault.__cause__})" if fault.__cause__ is not None else str(fault)
    words = textwrap.shorten(
        whole.partition("Example of usage")[0] or type(fault).__name__, 500, placeholder=" …"
    ).rstrip(".")
    if "BuilderConfig" in whole or whole.startswith("Config name is missing"):
        return f"{words}; a configuration is named behind the place, {START}{address.place}:CONFIG"
    return words if address.folder is not None else f"{words}; nor is there a folder {address.place} here"


@contextlib.contextmanager
def _waiting(datasets: Any, root: str) -> Iterator[None]:
    """Show the library's own bars on a terminal alone; elsewhere say from time to time what is waited for."""
    if sys.stderr.isatty():
        yield
        return
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with task(f"reading {root}"):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _split(splits: Mapping[str, Any], split: Split) -> str | None:
    """What a data set calls a split of ours; None: it has none."""
    return next((name for name in SPLITS[split] if name in splits), None)


# which columns --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str
    label: str | None
    depth: str | None


def _columns(
    root: str, features: Mapping[str, Any], image: str | None, label: str | None, depth: str | None
) -> _Columns:
    """The columns that are read; raises `BadInput` for a named one that does not fit, and where several might."""
    from datasets import ClassLabel

    key_of_image, key_of_label, key_of_depth = HUB_COLUMNS
    maps = [name for name in features if _is_image(features[name]) or _is_array(features[name])]
    if depth is None:
        maps = [name for name in maps if name.lower() in DEPTH and name != image]
    found_depth = _column(root, key_of_depth, "depth (images or arrays)", maps, DEPTH, depth)
    pictures = [name for name in features if _is_image(features[name]) and name != found_depth]
    found = _column(root, key_of_image, "images", pictures, IMAGE, image)
    if found is None:
        kinds = ", ".join(f"{name} ({getattr(each, 'dtype', type(each).__name__)})" for name, each in features.items())
        raise BadInput(f"{root} has no column of images; its columns: {kinds}")
    classes = [name for name in features if isinstance(features[name], ClassLabel)]
    return _Columns(found, _column(root, key_of_label, "classes", classes, LABEL, label), found_depth)


def _column(root: str, key: str, what: str, there: list[str], usual: tuple[str, ...], said: str | None) -> str | None:
    """The column that a key names; else the only one, or the only one that is called as usual; None: there is none."""
    if said is not None:
        if said in there:
            return said
        if said == NONE and key != HUB_COLUMNS[0]:
            return None
        held = f"it has {', '.join(there)}" if there else "it has none"
        raise BadInput(f"data.{key}={said}: {root} has no such column of {what}{nearest(said, there)}; {held}")
    named = [name for name in there if name.lower() in usual]
    likely = named or there
    if len(likely) > 1:
        raise BadInput(
            f"{root} has several columns of {what} ({', '.join(likely)}): choose one, data.{key}={likely[0]}"
        )
    return likely[0] if likely else None


def _is_image(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


def _is_array(feature: Any) -> bool:
    """Whether a column holds arrays of two dimensions: of one shape, or lists of lists of numbers."""
    from datasets import Array2D

    if isinstance(feature, Array2D):
        return True
    inner = getattr(getattr(feature, "feature", None), "feature", None)
    return getattr(inner, "dtype", "").startswith(("float", "uint", "int"))


def _labels(
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


# what a row holds -----------------------------------------------------------------------------------------


def _content(value: Mapping[str, Any] | None, name: str, folder: Path | None) -> tuple[bytes, str]:
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


def _is_whole(values: np.ndarray) -> bool:
    """Whether depth is whole numbers of 16 bits, as in a PNG."""
    return values.dtype.kind == "u"


def _array(value: Any) -> np.ndarray | None:
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


def _file_names(column: Any) -> np.ndarray | None:
    """Names of the files that images came from, without their folders, as bytes; None where none has one."""
    parts = list(_parts(column, "path"))
    if all(part.null_count == len(part) for part in parts):
        return None
    names = [np.array([os.fsencode(PurePath(path or "").name) for path in part.to_pylist()]) for part in parts]
    return np.concatenate(names)


def _sizes(column: Any) -> Int64[np.ndarray, " rows"]:
    """Bytes of each image, told without reading it; -1 where there is none."""
    from pyarrow import compute

    lengths = [compute.binary_length(part).fill_null(-1).to_numpy() for part in _parts(column, "bytes")]
    return _with_files(np.concatenate(lengths).astype(np.int64), column, file_sizes)


def _marks(column: Any) -> Int64[np.ndarray, " rows"]:
    """A number for each row, by pieces of its bytes or of its array; -1 where there is none."""
    import pyarrow

    if not pyarrow.types.is_struct(column.type):
        arrays = (_array(value) if value.is_valid else None for value in column)
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


# the row -------------------------------------------------------------------------------------------------


def _matches(root: str) -> bool:
    return root.startswith(START)


def _open(config: DataConfig, root: str, split: Split) -> HubImages:
    return HubImages(
        root,
        split,
        image=config.hub_image,
        label=config.hub_label,
        depth=config.hub_depth,
        depth_scale=config.depth_scale,
        depth_orientation=config.depth_orientation,
        classes=config.classes,
        images_per_class=config.images_per_class,
    )


LAYOUT = DataLayout(
    noun="data set of the hub",
    states="is a data set of the Hugging Face hub",
    matches=_matches,
    open=_open,
    has_validation=lambda config, root: _split(splits_of(root), "val") is not None,
    source_name=_name,
    by_name=True,
    place=lambda root: address_of(root).folder,
    takes_subsets=True,
    reads=("depth_orientation", "depth_scale", *HUB_COLUMNS),
    may_have_depth=True,
    may_have_labels=True,
)
