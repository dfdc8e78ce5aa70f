"""Writing a labelled folder from photographs and label maps of a data set, whose values become indices of classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import ExifTags, Image

from depthjepa.data.groups import GROUPS
from depthjepa.data.images import Split, decode
from depthjepa.data.layouts.labelled import CLASSES, class_names, stored_labels
from depthjepa.data.listing import image_names
from depthjepa.data.pairing import LABELS, some_of
from depthjepa.data.prepare.writing import Form, Prepared, link, stored_size, write_folder
from depthjepa.data.samples import VOID, UnreadableImage
from depthjepa.faults import BadInput
from depthjepa.logbook import whole_file

NOT_THERE = -1  # no official file has what is there


Indices = Callable[[Path], Int16[np.ndarray, "h w"]]  # classes of an official label map, `NOT_THERE` where none is


def by_value(classes: Mapping[int, int]) -> Indices:
    """Read label maps whose values stand for classes."""
    table = np.full(256, NOT_THERE, dtype=np.int16)
    table[list(classes)] = list(classes.values())
    return lambda path: table[stored_labels(path)[0]]


def by_colour(classes: Mapping[tuple[int, int, int], int]) -> Indices:
    """Read label maps whose colours stand for classes."""

    def read(path: Path) -> Int16[np.ndarray, "h w"]:
        pixels = decode(path).numpy().astype(np.int32)
        numbers = (pixels[0] << 16) + (pixels[1] << 8) + pixels[2]
        there, which = np.unique(numbers, return_inverse=True)
        found = [classes.get((number >> 16, number >> 8 & 255, number & 255), NOT_THERE) for number in there.tolist()]
        return np.array(found, dtype=np.int16)[which].reshape(numbers.shape)

    return read


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A photograph and its label map in the official files."""

    split: Split
    photograph: str  # its name below `SPLIT/rgb`
    from_photograph: Path
    from_labels: Path
    read: Indices
    source: str  # where the files are to be fetched from

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Link the photograph, and write its label map; returns the indices.

        The map lies as the photograph is stored, and gets its EXIF orientation.
        """
        size, tag = stored_size(self.from_photograph, self.source)
        try:
            indices = self.read(self.from_labels)
        except UnreadableImage as fault:
            raise BadInput(f"{fault}: the file is damaged or incomplete; fetch it from {self.source}") from fault
        if indices.shape != size:
            raise BadInput(
                f"{self.from_labels} is {indices.shape[0]} x {indices.shape[1]} pixels (height x width), its "
                f"photograph {self.from_photograph} is {size[0]} x {size[1]}: they do not belong together"
            )
        if (strange := indices == NOT_THERE).any():
            row, column = np.argwhere(strange)[0].tolist()
            raise BadInput(
                f"{self.from_labels} holds a value at row {row}, column {column} that the official label maps do not "
                f"have: fetch it from {self.source}"
            )
        labels: UInt8[np.ndarray, "h w"] = indices.astype(np.uint8)
        link(self.from_photograph, photograph)
        exif = Image.Exif()
        if tag > 1:
            exif[ExifTags.Base.Orientation] = tag
        with whole_file(beside) as file:
            Image.fromarray(labels).save(file, format="PNG", exif=exif)
        return labels


def matched(photographs: Path, labels: Path, endings: tuple[str, str], source: str) -> list[tuple[str, Path, Path]]:
    """Pairs below two folders: what their paths have in common, the photograph and the label map.

    `endings` are those of photographs and of label maps; other files are left out. Raises `BadInput` where there are
    none, and for those without the other half.
    """
    photos, maps = (_by_name(*each, source) for each in zip((photographs, labels), endings, strict=True))
    for own, other, folder in ((photos, maps, labels), (maps, photos, photographs)):
        if lonely := [str(own[name]) for name in sorted(own.keys() - other.keys())]:
            raise BadInput(
                f"{len(lonely)} of {len(own)} files have no other half in {folder}: {some_of(lonely)}; unpack all of "
                f"{source}"
            )
    return [(name, photos[name], maps[name]) for name in sorted(photos)]


def _by_name(folder: Path, ending: str, source: str) -> dict[str, Path]:
    names = image_names(folder) if folder.is_dir() else []
    found = {name.removesuffix(ending): folder / name for name in names if name.endswith(ending)}
    if not found:
        raise BadInput(f"{folder} holds no files that end in {ending}: unpack those of {source}")
    return found


def write_labelled(
    out: Path, name: str, classes: Sequence[str], pairs: Sequence[LabelledPair], groups: Mapping[str, str] | None = None
) -> Prepared:
    """Write a labelled folder (`writing.write_folder`); `groups` are beginnings of IDs with the group of each."""

    def there(folder: Path) -> str | None:
        found = class_names(folder)
        return None if found == tuple(classes) else f"labels of {some_of(found)}"

    files = {CLASSES: "\n".join(classes) + "\n"}
    if groups is not None:
        content = {"groups": [list(each) for each in groups.items()], "focal_length_px": []}
        files[GROUPS] = json.dumps(content, indent=1) + "\n"
    form = Form(
        name=name,
        beside=LABELS,
        files=files,
        there=there,
        read=lambda path: stored_labels(path)[0],
        unknown=VOID,
        known="labelled",
    )
    return write_folder(out, form, pairs)
