"""Folders of photographs with a class for every pixel: `SPLIT/rgb/ID.*` beside `SPLIT/labels/ID.png`, `classes.txt`.

A label map is a PNG of the size of the upright photograph whose values are indices of classes: 8-bit grey, or a palette
(the indices count, its colours do not); 255 is void. `classes.txt` has the name of a class on each line, in the order
of the indices. Depth in `SPLIT/depth` is read too, as in an RGB-D folder. Label maps are read when they are asked for:
training does not need them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from depthjepa.data.config import MILLIMETRES, DataConfig, DepthOrientation
from depthjepa.data.contents import file_sizes
from depthjepa.data.groups import GroupList, read_groups, told_group
from depthjepa.data.images import DECODING_FAULTS, Split, decode_with_tag, orientation, why_unreadable
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.listing import list_images, packed
from depthjepa.data.pairing import (
    DEPTH,
    LABELS,
    PHOTOGRAPHS,
    has_splits,
    held_out,
    identity,
    is_undivided,
    paired,
    place_of,
    some_of,
)
from depthjepa.data.pixel_maps import fitted_map
from depthjepa.data.samples import VOID, Sample, UnreadableImage
from depthjepa.faults import BadInput

CLASSES = "classes.txt"
HEAD = 26  # bytes of a PNG that tell how it is stored
GREY, PALETTE = 0, 3  # PNG's numbers of what is stored
STORED = {GREY: "grey", 2: "RGB", PALETTE: "palette", 4: "grey with transparency", 6: "RGBA"}


class LabelledFolder:
    """Photographs of one split with their label maps, in the order of their names, and with depth where it is there.

    They stand, and are divided, as those pairs (`rgbd.PairedFolder`): in `SPLIT/rgb` and `SPLIT/labels`, or in both
    right below the folder. This is what both kinds add to photographs; `labelled_folder` opens either.
    """

    segment_classes: tuple[str, ...]

    def _label(
        self, root: Path, place: PurePosixPath, names: Sequence[str], orientation: DepthOrientation | None
    ) -> None:
        """Find the label maps of these `names` in the folder of a split."""
        self.segment_classes, self._listed_in = class_names(root), str(root / CLASSES)
        self._top, self._maps = root, root / place / LABELS.folder
        self._map_names = packed(names)
        self._maps_lie = orientation

    def labelled_sample(self, index: int) -> Sample:
        """Photograph `index`, and its depth, with the label map; raises `BadInput` for one that does not fit."""
        sample, tag = self.tagged(index)
        path = self._maps / os.fsdecode(self._map_names[index])
        paths = self._top / sample.name, path
        values, own = stored_labels(path)
        refuse_unnamed(values, str(path), self.segment_classes, self._listed_in)
        label_map = fitted_map(paths, sample.image, values, (tag, own), self._maps_lie, LABELS.one)
        return replace(sample, label_map=label_map)

    def tagged(self, index: int) -> tuple[Sample, int]:
        """The photograph, and its depth, with the EXIF orientation by which it was turned."""
        raise NotImplementedError

    def _strays(self) -> Counter[str]:
        return Counter(list_images(self._maps).ignored)


class _LabelledPhotographs(LabelledFolder):
    """Without depth."""

    classes: tuple[str, ...] = ()
    has_depth = False
    knows_focal_length = False
    keeps_samples = False

    def __init__(
        self, root: Path, place: PurePosixPath, names: Sequence[tuple[str, str]], orientation: DepthOrientation | None
    ) -> None:
        self.name = str(root)
        self._root, self._place = root, place
        self._below = f"{(place / PHOTOGRAPHS).as_posix()}/"
        self._names = packed(name for name, _ in names)
        self._label(root, place, [name for _, name in names], orientation)

    @property
    def ignored(self) -> Mapping[str, int]:
        """What lies among the photographs and maps and is neither, listed anew."""
        return Counter(list_images(self._root / self._place / PHOTOGRAPHS).ignored) + self._strays()

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of photograph `index` below the folder."""
        return f"{self._below}{os.fsdecode(self._names[index])}"

    def group_of(self, index: int) -> str | None:
        """Scene or place of photograph `index`, as of an RGB-D folder's pair (`groups.told_group`)."""
        return told_group(identity(os.fsdecode(self._names[index])), self._listed, self.name)

    @cached_property
    def _listed(self) -> GroupList | None:
        return read_groups(self._root)

    def stamps(self) -> Int64[np.ndarray, "images 1"]:
        """Bytes of each photograph; of no label map, which training does not read."""
        names = [os.fsdecode(name) for name in self._names]
        return file_sizes(self._root / self._place / PHOTOGRAPHS, names)[:, None]

    def sample(self, index: int) -> Sample:
        """Decode photograph `index`; raises `UnreadableImage`."""
        return self.tagged(index)[0]

    def tagged(self, index: int) -> tuple[Sample, int]:
        """The photograph, and the EXIF orientation by which it was turned."""
        name = self.name_of(index)
        image, tag = decode_with_tag(self._root / name)
        return Sample(image=image, depth=None, label=-1, name=name), tag


class _LabelledPairs(PairedFolder, LabelledFolder):
    """With depth: pairs of an RGB-D folder, with all that is known of their cameras."""

    def __init__(
        self,
        root: Path,
        split: Split,
        place: PurePosixPath,
        names: Sequence[tuple[str, str]],
        depth_scale: float,
        orientation: DepthOrientation | None,
        val_prefixes: Sequence[str] | None,
        val_list: str | Path | None,
    ) -> None:
        super().__init__(
            root,
            split,
            depth_scale,
            depth_orientation=orientation,
            val_prefixes=val_prefixes,
            val_list=val_list,
        )
        self._label(root, place, [name for _, name in names], orientation)

    @property
    def ignored(self) -> Mapping[str, int]:
        """What lies among photographs, depth files and maps and is none of them, listed anew."""
        return Counter(super().ignored) + self._strays()


def labelled_folder(
    root: Path,
    split: Split,
    depth_scale: float = MILLIMETRES,
    *,
    depth_orientation: DepthOrientation | None = None,
    val_prefixes: Sequence[str] | None = None,
    val_list: str | Path | None = None,
) -> _LabelledPhotographs | _LabelledPairs:
    """Open one split. `depth_orientation` says how maps lie where one file of a pair has an EXIF rotation.

    Raises `BadInput` when photographs and label maps do not pair up, when the validation data are unclear and for
    what is wrong with `classes.txt`, or with depth; on reading when a label map has another size or rotation, does not
    hold indices, or holds one that `classes.txt` has no line for.
    """
    divided = val_prefixes is not None or val_list is not None
    class_names(root)  # before anything else is looked for
    place = place_of(root, split, LABELS, divided=divided)
    names = paired(root / place, LABELS)
    if divided:
        validation = held_out((identity(name) for name, _ in names), root, val_prefixes, val_list)
        names = [pair for pair in names if (identity(pair[0]) in validation) == (split == "val")]
    if not (root / place / DEPTH.folder).is_dir():
        return _LabelledPhotographs(root, place, names, depth_orientation)
    return _LabelledPairs(root, split, place, names, depth_scale, depth_orientation, val_prefixes, val_list)


def class_names(root: Path) -> tuple[str, ...]:
    """The lines of `classes.txt`: names of classes in the order of their indices.

    Raises `BadInput` where it is missing, is no text, names none or too many, has an empty line or a name twice.
    """
    path = root / CLASSES
    try:
        content = path.read_bytes()
    except FileNotFoundError as fault:
        raise BadInput(
            f"{root} is read as a {LABELS.noun}, but has no {CLASSES}: write the names of the classes there, one a "
            f"line, in the order of the indices in {LABELS.folder}/"
        ) from fault
    except OSError as fault:
        raise BadInput(f"{path} cannot be read: {fault.strerror}") from fault
    return listed_classes(content, str(path))


def listed_classes(content: bytes, path: str) -> tuple[str, ...]:
    """The names in the content of a `classes.txt`; raises `BadInput` as `class_names` does, with its `path`."""
    try:
        text = content.decode("utf-8-sig")  # editors of some systems begin a file with a mark
    except UnicodeDecodeError as fault:
        raise BadInput(f"{path} cannot be read: it is not a text file") from fault
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise BadInput(f"{path} is empty: it has the name of a class on each line")
    if "" in names:
        raise BadInput(f"{path}, line {names.index('') + 1} is empty: each line is the name of the class of its index")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise BadInput(f"{path} names a class twice: {some_of(twice)}")
    if len(names) > VOID:
        raise BadInput(f"{path} names {len(names)} classes, and label maps of 8 bits have room for {VOID}")
    return tuple(names)


def refuse_unnamed(values: UInt8[np.ndarray, "rows cols"], name: str, classes: Sequence[str], listed_in: str) -> None:
    """Raise `BadInput` for a label map, of that `name`, with an index for which there is no class."""
    if (beyond := values[(values >= len(classes)) & (values != VOID)]).size:
        raise BadInput(
            f"{name} holds the value {int(beyond[0])} in {beyond.size} of {values.size} pixels, but {listed_in} names "
            f"{len(classes)} classes: a label map holds their indices, 0 to {len(classes) - 1}, and {VOID} for void"
        )


def stored_labels(file: Path | io.BytesIO, name: str | None = None) -> tuple[UInt8[np.ndarray, "rows cols"], int]:
    """The indices in a label map as they lie in the file, and the file's EXIF orientation.

    Content in memory needs a `name`, for messages. Raises `UnreadableImage` for a damaged file and `BadInput` for one
    that does not hold indices of 8 bits.
    """
    name = str(file) if name is None else name
    try:
        with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as opened:
            head = opened.read(HEAD)
            bits, stored = (head[24], head[25]) if head[1:4] == b"PNG" and len(head) == HEAD else (0, -1)
            # Pillow multiplies grey values of fewer than 8 bits, so that their indices would be others.
            held = stored == PALETTE or (stored == GREY and bits == 8)
            with Image.open(opened) as image:
                kind = image.format or ""
                values, tag = (np.array(image) if held else None), orientation(image)
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{name}: {why_unreadable(file, fault)}") from fault
    if values is None:
        what = f"{STORED[stored]} of {bits} bits" if stored in STORED else f"no PNG but {kind}"
        raise BadInput(
            f"{name} is {what}; a label map is a PNG of 8-bit grey or a palette whose values are the indices of the "
            f"lines of {CLASSES}, {VOID} = void (of colours, nothing tells which class each is)"
        )
    return values, tag


def _matches(root: str) -> bool:
    folder = path_of(root)
    return has_splits(folder, LABELS) or is_undivided(folder, LABELS)


def _open(config: DataConfig, root: str, split: Split) -> _LabelledPhotographs | _LabelledPairs:
    return labelled_folder(
        path_of(root),
        split,
        config.depth_scale,
        depth_orientation=config.depth_orientation,
        val_prefixes=config.val_prefixes,
        val_list=config.val_list,
    )


def _has_validation(config: DataConfig, root: str) -> bool:
    folder = path_of(root)
    return config.divides_pairs or (not is_undivided(folder, LABELS) and (folder / "val").is_dir())


LAYOUT = DataLayout(
    noun=LABELS.noun,
    states=f"is a {LABELS.noun}",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    reads=("depth_orientation", "depth_scale"),
    may_have_label_maps=True,
    pairs="labelled pairs",
)
