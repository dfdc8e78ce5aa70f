"""Writing a folder that the package reads from the official files of a data set; killed, it goes on.

What is written stands in `OUT.partial` until all of it is there: `OUT` is whole or absent.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.dataset_facts import DATASET, DatasetFacts, dataset_facts
from depthjepa.data.images import DECODING_FAULTS, Split, fault_line, tag_of
from depthjepa.data.listing import image_names
from depthjepa.data.pairing import DEPTH, PHOTOGRAPHS, SUFFIX, Beside, some_of
from depthjepa.data.pixel_maps import decode_depth
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput, RunStopped
from depthjepa.locks import NAME, locked
from depthjepa.logbook import to_json, whole_file, whole_path, write_whole, writing
from depthjepa.progress import track
from depthjepa.stopping import interruptions

SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a folder holds: pairs of each split, and the share of their pixels that is `known` (measured), in [0, 1].

    `remarks` are what is to be said beside: what was left out, and what is not known.
    """

    folder: Path
    pairs: Mapping[Split, int]
    measured: Mapping[Split, float]
    known: str = "measured"
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = {"train": "training", "val": "validation"}
        parts = (
            f"{count} {words[split]} pairs, {100 * self.measured[split]:.1f} % of their pixels {self.known}"
            for split, count in self.pairs.items()
        )
        return "\n".join([f"{self.folder}: {'; '.join(parts)}", *self.remarks])


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What is to be known of a folder beside its pairs."""

    name: str  # of the data set
    beside: Beside
    files: dict[str, str]  # right in the folder, by their names; the first one marks what this command wrote
    there: Callable[
        [Path], str | None
    ]  # what a folder that bears the mark holds, in words; None: what is to be written
    read: Callable[[Path], np.ndarray]  # a map that was written
    unknown: int = 0  # the value of pixels that nothing is known of
    known: str = "measured"  # what the others are

    @property
    def mark(self) -> str:
        """The file that marks what this command wrote."""
        return next(iter(self.files))


@runtime_checkable
class Pair(Protocol):
    """One photograph and its depth or label map, still in the official files."""

    @property
    def split(self) -> Split: ...

    @property
    def photograph(self) -> str:
        """Its name below `SPLIT/rgb`, with the suffix."""
        ...

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Write both files, each whole or not at all, and return the depth, in any unit, or the labels.

        Raises `BadInput` where they are damaged or do not fit.
        """
        ...


def write_all(
    out: Path, facts: DatasetFacts, pairs: Sequence[Pair], files: Mapping[str, str] | None = None
) -> Prepared:
    """Write an RGB-D folder (`write_folder`), with other `files` right in it, texts by their names."""
    scale = facts.units_per_metre or MILLIMETRES
    content = asdict(facts)
    if facts.depth_unit is None:
        del content["depth_unit"]  # earlier versions, which do not know it, then read the folder as well

    def there(folder: Path) -> str | None:
        found = dataset_facts(folder)
        if found == facts:
            return None
        return str(found.name) if found.name != facts.name else f"{found.name} of another source or other options"

    form = Form(
        name=str(facts.name),
        beside=DEPTH,
        files={DATASET: to_json(content), **(files or {})},
        there=there,
        read=lambda path: read_depth(path, scale),
    )
    return write_folder(out, form, pairs)


def write_folder(out: Path, form: Form, pairs: Sequence[Pair]) -> Prepared:
    """Write what is not there yet, and count what is known; a first call leaves `out` whole or absent.

    Raises `BadInput` where `out` holds something else, and what writing a pair raises; `RunStopped` when interrupted.
    """
    out = out.resolve() if out.name in ("", "..") or out.is_symlink() else out  # what is renamed is the folder itself
    folder = out if (out / form.mark).exists() else out.with_name(out.name + ".partial")
    counts = {split: np.zeros(3, dtype=np.int64) for split in SPLITS}  # pairs, known pixels, pixels
    # Where there is a folder it is locked, else its name is, in the folder that it is to lie in.
    lock = (out, NAME) if folder == out else (out.parent, f"{NAME}-{out.name}")
    with locked(lock[0], name=lock[1]), interruptions() as stopping:
        _begin(out, folder, form, pairs)
        for pair in track(pairs, f"pairs of {form.name}", len(pairs)):
            if stopping():
                raise RunStopped(f"stopped; what is written stands in {folder}, and the same command goes on")
            photograph = folder / pair.split / PHOTOGRAPHS / pair.photograph
            beside = (folder / pair.split / form.beside.folder / pair.photograph).with_suffix(SUFFIX)
            there = photograph.exists() and beside.exists()
            values = form.read(beside) if there else pair.write(photograph, beside)
            counts[pair.split] += np.array((1, np.count_nonzero(values != form.unknown), values.size))
        if folder != out:
            with writing(out):
                folder.rename(out)
    full = {split: count for split, count in counts.items() if count[0]}
    return Prepared(
        out,
        pairs={split: int(count[0]) for split, count in full.items()},
        measured={split: float(count[1] / count[2]) for split, count in full.items()},
        known=form.known,
    )


def _begin(out: Path, folder: Path, form: Form, pairs: Sequence[Pair]) -> None:
    """Refuse to mix two data sets, or two splits of one, in a folder; then write what is to be known of it."""
    if folder != out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} exists and was not written by this command: choose another --out")
    if folder != out and out.is_mount():
        raise BadInput(
            f"{out} is where a disk is mounted, and a folder that is written whole cannot be: give one in it"
        )
    if (folder / form.mark).exists() and (there := form.there(folder)) is not None:
        raise BadInput(f"{folder} holds {there}, not {form.name}: choose another --out, or remove it")
    times = Counter(str(PurePosixPath(pair.photograph).with_suffix("")) for pair in pairs)
    if twice := sorted(name for name, count in times.items() if count > 1):
        raise BadInput(f"{len(twice)} of {len(times)} pairs come twice, in one split or in both: {some_of(twice)}")
    planned = {(pair.split, pair.photograph) for pair in pairs}
    for split in SPLITS:
        place = folder / split / PHOTOGRAPHS
        if place.is_dir() and (others := [name for name in image_names(place) if (split, name) not in planned]):
            raise BadInput(
                f"{place} holds {some_of(others)}, which this source or split does not have: choose another --out, or "
                f"remove {folder}"
            )
    for name in reversed(form.files):  # the mark last: what bears it has the others
        if not (folder / name).exists():
            write_whole(folder / name, form.files[name])


def stored_size(path: Path, source: str) -> tuple[tuple[int, int], int]:
    """Height and width of a photograph as it is stored, and its EXIF orientation; raises `BadInput` unless it is whole.

    `source` is where to fetch it from, for the message.
    """
    try:
        with Image.open(path) as image:
            size = image.height, image.width
            if image.format == "PNG":
                image.verify()  # checksums: a quarter of the time of decoding
            else:
                image.load()
    except DECODING_FAULTS as fault:
        raise BadInput(
            f"{path}: {fault_line(fault)}: the file is damaged or incomplete; fetch it from {source}"
        ) from fault
    return size, tag_of(path)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, where the file system has hard links; else copy it."""
    with whole_path(target) as partial:
        partial.unlink(missing_ok=True)  # of a killed call
        try:
            os.link(source.resolve(), partial)
        except OSError:  # another file system, or one without links: what is wrong with the target, copying tells
            shutil.copyfile(source, partial)


def save_png(path: Path, pixels: UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w"]) -> None:
    """Write a photograph or depth as a PNG file, whole or not at all."""
    with whole_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def millimetres(metres: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Depth in millimetres, 0 = not measured, or not to be written in 16 bits."""
    values = np.rint(np.asarray(metres, dtype=np.float64) * MILLIMETRES)
    known = np.isfinite(values) & (values > 0) & (values <= np.iinfo(np.uint16).max)
    return np.where(known, values, 0).astype(np.uint16)


def read_depth(path: Path, scale: float) -> Float[np.ndarray, "1 h w"]:
    """Read a depth file [m]; raises `BadInput`, here for a damaged one, too."""
    try:
        return decode_depth(path, scale).numpy()
    except UnreadableImage as fault:
        raise BadInput(f"{fault}: the file is damaged or incomplete; remove it, and fetch or write it again") from fault
