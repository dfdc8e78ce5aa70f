"""Folders of photographs with measured depth: `SPLIT/rgb/ID.*` beside `SPLIT/depth/ID.png`, or both without SPLIT.

A depth file is a 16-bit grey PNG of the same size as the upright photograph; metres along the optical axis
are its value divided by `depth_scale` (1000: millimetres), and 0 means that nothing was measured. What else a data set
says of its depth stands in `dataset.json` (`DatasetFacts`).
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass as configuration
from torch import Tensor

from depthjepa.data.config import MILLIMETRES, DataConfig
from depthjepa.data.images import (
    DECODING_FAULTS,
    SUFFIXES,
    Split,
    decode,
    fault_line,
    image_names,
    list_images,
    loose_images,
    packed,
    sub_folders,
)
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.depth import valid
from depthjepa.faults import BadInput, nearest
from depthjepa.settings import STRICT

DATASET = "dataset.json"

# How others call the two folders.
DEPTH_WORDS = ("depth", "Depth", "DEPTH", "depths", "depth_maps", "depth_map", "depthmaps", "disparity")
COLOUR_WORDS = ("rgb", "rgbs", "color", "colour", "colors", "image", "images", "img", "imgs", "photo", "photos", "left")

EXACT = ConfigDict(**STRICT, strict=True)  # 2 is no name, and "2" no number
Share = Annotated[float, Field(ge=0, le=1)]


@configuration(frozen=True, slots=True, config=EXACT)
class EvaluationCrop:
    """The rectangle that a benchmark judges, as shares of the image's sides: it holds for any size.

    Whole pixels are the shares of the sides cut off after the point, as usual evaluation code has it; `bottom` and
    `right` are the first that are left out.
    """

    name: str
    shares: tuple[Share, Share, Share, Share]  # top, left, bottom, right

    @field_validator("shares")
    @classmethod
    def _not_empty(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError("should be [top, left, bottom, right] with top < bottom and left < right")
        return value

    def pixels(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the rectangle in an image of `height` x `width`."""
        # 471 / 480 x 480 must be 471. What is added exceeds the rounding of doubles, and is too little to lift the
        # 366.9999993 rows that Garg's crop leaves of 370.
        top, left, bottom, right = (
            int(share * side + 1e-9) for share, side in zip(self.shares, (height, width) * 2, strict=True)
        )
        return slice(top, bottom), slice(left, right)


@configuration(frozen=True, slots=True, config=EXACT)
class DatasetFacts:
    """What `dataset.json` says of an RGB-D folder; every key may be left out."""

    name: str | None = None
    depth_scale: PositiveFloat | None = None  # file units per metre; None: what data.depth_scale says
    range: tuple[PositiveFloat, PositiveFloat] | None = None  # nearest and farthest [m]; depth beyond it is invalid
    evaluation_crop: EvaluationCrop | None = None  # depth outside of it is invalid in validation data
    focal_length: PositiveFloat | None = None  # [px] at the full width of the images

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("should be [nearest, farthest] in metres with nearest < farthest")
        return value


def dataset_facts(root: Path) -> DatasetFacts:
    """Read `dataset.json` of an RGB-D folder; without the file, nothing is said.

    Raises `BadInput` for a file that is not JSON, unknown keys and values of another type, with file and key.
    """
    path = root / DATASET
    if not path.exists():
        return DatasetFacts()
    try:
        return TypeAdapter(DatasetFacts).validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(_explain(fault) for fault in error.errors())
        raise BadInput(f"{path}: {faults}") from error


def _explain(fault: Any) -> str:
    key, text = ".".join(str(part) for part in fault["loc"]), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return f"it is not JSON ({text.removeprefix('Invalid JSON: ')})"
    if fault["type"] == "unexpected_keyword_argument":
        known = EvaluationCrop if len(fault["loc"]) > 1 else DatasetFacts
        return f"unknown key {key!r}{nearest(key.rpartition('.')[2], known.__dataclass_fields__)}"
    if fault["type"] == "missing":
        return f"{key!r} is missing"
    text = text.removeprefix("Input ").removeprefix("should ")
    return f"{key}={fault['input']!r}: should {text}" if key else f"the file should hold {{...}}: {text}"


class PairedFolder:
    """RGB-D pairs of one split, in the order of their names.

    Pairs stand in `SPLIT/rgb` and `SPLIT/depth`. Where there is no `val/`, they may stand in `rgb` and `depth` right
    below the folder, and `val_prefixes` (beginnings of IDs) or `val_list` (a file with one ID or beginning a line) say
    which of them are validation data; the others are training data. Without them all are training data.

    `depth_scale` is file units per metre; `MILLIMETRES`, the default, leaves it to `dataset.json` where that says
    another, and any other value is insisted on. Depth beyond the range of `dataset.json` is invalid, and so is depth
    outside of its evaluation crop in validation data. `focal_length` is in pixels at full width, None: unknown.

    Raises `BadInput` when photographs and depth files do not pair up, when the validation data are unclear, and on
    reading when a depth file has another size or is not 16-bit grey.
    """

    classes: tuple[str, ...] = ()
    has_depth = True
    keeps_samples = False

    def __init__(
        self,
        root: Path,
        split: Split,
        depth_scale: float = MILLIMETRES,
        *,
        val_prefixes: Sequence[str] | None = None,
        val_list: str | Path | None = None,
    ) -> None:
        self.name = str(root)
        self._root = root
        self._facts = dataset_facts(root)
        self.focal_length = self._facts.focal_length
        stated = self._facts.depth_scale
        self._depth_scale = stated if stated is not None and depth_scale == MILLIMETRES else depth_scale
        self._crop = self._facts.evaluation_crop if split == "val" else None
        divided = val_prefixes is not None or val_list is not None
        self._place = _place(root, split, divided)
        names = _paired(root / self._place)
        if divided:
            held_out = _held_out(names, root, val_prefixes, val_list)
            names = [name for name in names if (_identity(name) in held_out) == (split == "val")]
        self._names = packed(names)

    @property
    def ignored(self) -> Mapping[str, int]:
        """What lies among photographs and depth files and is neither, listed anew."""
        folder = self._root / self._place
        return Counter(list_images(folder / "rgb").ignored) + Counter(list_images(folder / "depth").ignored)

    @property
    def knows_focal_length(self) -> bool:
        """Whether `dataset.json` gives the focal length."""
        return self.focal_length is not None

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of photograph `index` below the folder."""
        return (self._place / "rgb" / os.fsdecode(self._names[index])).as_posix()

    def sample(self, index: int) -> Sample:
        """Decode pair `index`; raises `UnreadableImage`, and `BadInput` for depth that does not fit."""
        name = os.fsdecode(self._names[index])
        image = decode(self._root / self._place / "rgb" / name)
        path = self._root / self._place / "depth" / PurePosixPath(name).with_suffix(".png")
        depth = decode_depth(path, self._depth_scale)
        if depth.shape[1:] != image.shape[1:]:
            raise BadInput(
                f"{path} is {depth.shape[1]} x {depth.shape[2]} pixels (height x width), its photograph "
                f"{name} is {image.shape[1]} x {image.shape[2]}: they must have the same size"
            )
        return Sample(image=image, depth=self._judged(depth), label=-1, name=self.name_of(index))

    def _judged(self, depth: Float32[Tensor, "1 h w"]) -> Float32[Tensor, "1 h w"]:
        if self._facts.range is not None:
            depth = torch.where(valid(depth, *self._facts.range), depth, 0)
        if self._crop is None:
            return depth
        rows, columns = self._crop.pixels(*depth.shape[1:])
        inside = torch.zeros_like(depth)
        inside[:, rows, columns] = depth[:, rows, columns]
        return inside


def decode_depth(path: Path, depth_scale: float) -> Float32[Tensor, "1 h w"]:
    """Read a 16-bit grey PNG as depth [m], 0 = invalid; `depth_scale` is file units per metre.

    Raises `UnreadableImage` for a damaged file and `BadInput` for one of another kind.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{path}: {fault_line(fault)}") from fault
    # Pillow calls 16-bit grey I;16; its versions before 11 call it I.
    if not mode.startswith("I") or image.format != "PNG":
        raise BadInput(
            f"{path} is {image.format} of mode {mode}; depth must be a grey PNG of 16 bits, metres x "
            f"data.depth_scale ({depth_scale:g}), 0 = invalid (in 8 bits the metres are lost)"
        )
    return torch.from_numpy(values.astype(np.float32) / np.float32(depth_scale))[None]


def _paired(folder: Path) -> list[str]:
    photographs = image_names(folder / "rgb")
    depths = image_names(folder / "depth")
    if not photographs:
        raise BadInput(f"{folder / 'rgb'} holds no images (accepted: {' '.join(SUFFIXES)})")
    if others := [name for name in depths if not name.endswith(".png")]:
        raise BadInput(f"depth must be 16-bit .png files, but {folder / 'depth'} holds {some_of(others)}")
    stems = [_identity(name) for name in photographs]
    twice = sorted({stem for stem, following in pairwise(stems) if stem == following})
    if twice:
        raise BadInput(f"{folder / 'rgb'} holds several photographs of one name: {some_of(twice)}")
    with_depth = {_identity(name) for name in depths}
    faults = []
    if lonely := [stem for stem in stems if stem not in with_depth]:
        faults.append(f"{len(lonely)} of {len(stems)} photographs have no depth: {some_of(lonely)}")
    if lonely := sorted(with_depth - set(stems)):
        faults.append(f"{len(lonely)} of {len(with_depth)} depth files have no photograph: {some_of(lonely)}")
    if faults:
        raise BadInput(f"{folder}: rgb/ and depth/ do not pair up; {'; '.join(faults)}")
    return photographs


def _identity(name: str) -> str:
    """ID of a pair: the path of its photograph below `rgb`, without the suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _place(root: Path, split: Split, divided: bool) -> PurePosixPath:
    """Where the pairs of a split stand below the folder; `divided`: the user says which of them are validation data."""
    undivided = _is_undivided(root)
    if divided and not undivided and (root / "val").is_dir():
        raise BadInput(f"data.val_prefixes and data.val_list are for pairs without val/, but {root} has its own val/")
    if split == "val" and not divided and (undivided or not (root / "val").is_dir()):
        raise BadInput(
            f"{root} has no val/: say which pairs are validation data, by the beginnings of their IDs "
            f"(data.val_prefixes=[kitchen,bath]) or a file of IDs (data.val_list=FILE)"
        )
    place = PurePosixPath("." if undivided else "train" if divided else split)
    for part in ("rgb", "depth"):
        if not (root / place / part).is_dir():
            raise BadInput(
                f"{root} is read as an RGB-D folder, but has no {place / part}/ "
                f"(needed: {place / 'rgb/ID.jpg'} and {place / 'depth/ID.png'})"
            )
    return place


def _held_out(
    names: Sequence[str], root: Path, prefixes: Sequence[str] | None, listed: str | Path | None
) -> frozenset[str]:
    """IDs of the validation pairs. A line that is an ID means that pair alone, even if other IDs begin with it."""
    if prefixes is not None and listed is not None:
        raise BadInput("data.val_prefixes and data.val_list both say which pairs are validation data: give one")
    key = "data.val_prefixes" if listed is None else f"data.val_list={listed}"
    identities = sorted(_identity(name) for name in names)
    words = list(prefixes or ()) if listed is None else _lines(Path(listed).expanduser())
    if not words:
        raise BadInput(f"{key} names no pairs: give at least one ID, or the beginning of some")
    alone = set() if listed is None else set(identities).intersection(words)
    found = set(alone)
    for word in words:
        if word in alone:
            continue
        first = end = bisect_left(identities, word)
        while end < len(identities) and identities[end].startswith(word):
            end += 1
        if first == end:
            raise BadInput(
                f"{key}: no pair of {root} has an ID that begins with {word!r}{nearest(word, identities)}; "
                f"its IDs are {some_of(identities)}"
            )
        found.update(identities[first:end])
    if len(found) == len(identities):
        raise BadInput(f"{key} matches all {len(identities)} pairs of {root}: none is left for training")
    return frozenset(found)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not a text file"
        raise BadInput(f"data.val_list={path} cannot be read: {reason}") from fault
    return [line.strip() for line in text.splitlines() if line.strip()]


def some_of(names: Sequence[str]) -> str:
    """Name the first three and count the others, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _has_splits(folder: Path) -> bool:
    return any((folder / split / "rgb").is_dir() for split in ("train", "val"))


def _is_undivided(folder: Path) -> bool:
    """Whether a folder holds `rgb` and `depth` itself, not sorted into `train` and `val`."""
    return not _has_splits(folder) and all((folder / part).is_dir() for part in ("rgb", "depth"))


def _matches(root: str) -> bool:
    folder = path_of(root)
    return _has_splits(folder) or _is_undivided(folder)


def _nearly(root: str) -> str:
    """What to say of photographs under another name beside their depth, which would be read as images themselves."""
    top = path_of(root)
    if not top.is_dir():
        return ""
    below = [top / name for name in sub_folders(top)]
    for place in (top, *below, *(folder / name for folder in below for name in sub_folders(folder))):
        beside = sub_folders(place) if any((place / word).is_dir() for word in DEPTH_WORDS) else []
        maps = next((name for name in beside if name in DEPTH_WORDS), "")
        others = [name for name in beside if name.lower() in COLOUR_WORDS]
        if maps and (others or _holds_depth(place / maps)):
            renamed = {others[0] if others else "the folder of the photographs": "rgb", maps: "depth"}
            words = [f"{name}{'/' * (' ' not in name)} to {new}/" for name, new in renamed.items() if name != new]
            what = f" beside {others[0]}/" if others else ", which holds depth maps"
            advice = [f"rename {' and '.join(words)}"] * bool(words)
            advice += [f"move them right below {top}, or below its train/ and val/"] * (
                place not in (top, top / "train", top / "val")
            )
            return (
                f"{place} holds {maps}/{what}, and an RGB-D folder has rgb/ beside depth/: {', '.join(advice)}; to "
                f"train on all of these files as images without depth, give data.kind=folder"
            )
    return ""


def _holds_depth(folder: Path) -> bool:
    """Whether the first image of a folder is of one channel of 16 bits."""
    try:
        first = next(iter(loose_images(folder)), None)
        if first is None:
            return False
        with Image.open(folder / first) as image:
            return image.mode.startswith("I")
    except DECODING_FAULTS:
        return False


def _open(config: DataConfig, root: str, split: Split) -> PairedFolder:
    return PairedFolder(
        path_of(root), split, config.depth_scale, val_prefixes=config.val_prefixes, val_list=config.val_list
    )


def _has_validation(config: DataConfig, root: str) -> bool:
    folder = path_of(root)
    return config.divides_pairs or (not _is_undivided(folder) and (folder / "val").is_dir())


LAYOUT = DataLayout(
    noun="RGB-D folder",
    states="is an RGB-D folder",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    reads=("depth_scale",),
    nearly=_nearly,
    may_have_depth=True,
    pairs="RGB-D pairs",
)
