"""Recordings of RGB-D cameras as one RGB-D folder: names, splits, frames, poses and focal lengths.

Frames of one recording resemble each other: a recording is a group, and validation data are whole recordings. An ID is
`RECORDING/FRAME`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.dataset_facts import DatasetFacts
from depthjepa.data.groups import GROUPS
from depthjepa.data.images import DECODING_FAULTS, Split, fault_line
from depthjepa.data.listing import sub_folders
from depthjepa.data.pairing import identity, some_of
from depthjepa.data.prepare.poses import PoseRows
from depthjepa.data.prepare.writing import Pair, Prepared, link, read_depth, stored_size, write_all
from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import to_json

SAME_CAMERA = 0.02  # focal lengths that differ by less are one for the folder as a whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recording: its pairs in the order of their frames, and what is known of its camera."""

    name: str
    pairs: Sequence[Pair]
    poses: Mapping[str, PoseRows] = field(default_factory=dict)  # by the names of photographs, `Pair.photograph`
    focal_length: float | None = None  # [px] at the full width


@dataclass(frozen=True, slots=True)
class LinkedPair:
    """A photograph and its depth in files that stay as they are."""

    split: Split
    photograph: str
    from_photograph: Path
    from_depth: Path
    scale: float  # file units per metre
    source: str  # where to get them, for messages
    drawn: str = ""  # what to do where depth is a picture for people

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Link both; returns metres."""
        values = whole_depth(self.from_depth, self.scale, self.drawn)
        refuse_other_sizes(self.from_photograph, self.from_depth, values, self.source)
        link(self.from_photograph, photograph)
        link(self.from_depth, beside)
        return values


def write_recordings(
    out: Path,
    name: str,
    recordings: Sequence[Recording],
    *,
    scale: float = MILLIMETRES,
    range: tuple[float, float] | None = None,
    remarks: Sequence[str] = (),
) -> Prepared:
    """Write recordings as one RGB-D folder, with groups, poses and focal lengths; `scale` is file units per metre.

    Where focal lengths differ, `groups.json` has them of each recording, and `dataset.json` their median where all are
    within 2 % of it. Raises what `write_all` raises.
    """
    groups = tuple((f"{each.name}/", each.name) for each in recordings)
    lengths = [each.focal_length for each in recordings if each.focal_length is not None]
    median = float(np.median(lengths)) if len(lengths) == len(recordings) and lengths else None
    alike = median is not None and all(abs(each / median - 1) <= SAME_CAMERA for each in lengths)
    facts = DatasetFacts(
        name=name,
        depth_scale=scale,
        range=range,
        focal_length=median if alike else None,
        groups=groups,
        poses={identity(photo): pose for each in recordings for photo, pose in each.poses.items()} or None,
    )
    files = {}
    if len(set(lengths)) > 1 or (lengths and median is None):
        own = [[f"{each.name}/", each.focal_length] for each in recordings if each.focal_length is not None]
        files[GROUPS] = to_json({"groups": groups, "focal_length_px": own})
    notes = list(remarks)
    if unknown := [each.name for each in recordings if each.focal_length is None]:
        notes.append(
            f"no focal length is known of {some_of(unknown)}: depth tables call their depth relative "
            f"(focal_length in dataset.json, or focal_length_px in {GROUPS})"
        )
    pairs = [pair for each in recordings for pair in each.pairs]
    return replace(write_all(out, facts, pairs, files), remarks=tuple(notes))


def folders_of(source: Path, is_recording: Callable[[Path], bool], what: str) -> dict[str, Path]:
    """Recordings by their names: `source` itself, or the folders in it; `what` says in a message what was expected.

    Raises `BadInput` where there is none.
    """
    if not source.is_dir():
        raise BadInput(f"there is no folder {source}: {what}")
    if is_recording(source):
        return {source.resolve().name: source}
    found = {name: source / name for name in sub_folders(source) if is_recording(source / name)}
    if not found:
        raise BadInput(f"{source} holds no recording: {what}")
    return found


def splits_of(names: Sequence[str], val: str | None) -> dict[str, Split]:
    """The split of each recording: those named in `val`, separated by commas, are validation data.

    Raises `BadInput` for a name that no recording has, and where none is left for training.
    """
    words = [word.strip() for word in val.split(",") if word.strip()] if val is not None else []
    if val is not None and not words:
        raise BadInput("--val names no recording: give the name of at least one, separated by commas")
    for word in words:
        if word not in names:
            raise BadInput(
                f"--val: there is no recording {word!r}{nearest(word, names)}; there are {some_of(sorted(names))}"
            )
    if words and set(words) == set(names):
        raise BadInput(f"--val names all {len(names)} recordings: none is left for training")
    return {name: "val" if name in words else "train" for name in names}


def associated(first: Float[np.ndarray, " m"], second: Float[np.ndarray, " n"], limit: float) -> list[tuple[int, int]]:
    """Numbers of moments [s] that belong together, in the order of the first: each once, the closest of all first.

    Those `limit` apart or more do not. As `associate.py` of the TUM RGB-D benchmark does it
    (https://cvg.cit.tum.de/data/datasets/rgbd-dataset/tools).
    """
    order = np.argsort(second, kind="stable")
    ranked = second[order]
    starts, ends = (np.searchsorted(ranked, first + step, side="left") for step in (-limit, limit))
    near = [
        (abs(float(first[one] - second[other])), one, int(other))
        for one, (start, end) in enumerate(zip(starts, ends, strict=True))
        for other in order[start:end]
        if abs(first[one] - second[other]) < limit
    ]
    taken: dict[int, int] = {}
    used: set[int] = set()
    for _, one, other in sorted(near):
        if one not in taken and other not in used:
            taken[one] = other
            used.add(other)
    return sorted(taken.items())


def nearest_moment(moments: Float[np.ndarray, " n"], wanted: float, limit: float) -> int | None:
    """Number of the moment [s] that is nearest to the wanted one, and less than `limit` from it; else None."""
    if not len(moments):
        return None
    found = int(np.abs(moments - wanted).argmin())
    return found if abs(moments[found] - wanted) < limit else None


def by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files right in a folder with such endings (in small letters), by their names without them, in their order.

    Raises `BadInput` for two files of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name[0] == "." or not path.is_file():
            continue
        if (other := found.setdefault(path.stem, path)) != path:
            raise BadInput(f"{folder} holds two files of one name: {other.name}, {path.name}")
    return found


def left_out(recording: str, what: str, count: int) -> list[str]:
    """A remark on frames that have no other half, for none an empty list."""
    return [f"{recording}: {count} {what}, left out"] if count else []


def whole_depth(path: Path, scale: float, drawn: str = "") -> Float[np.ndarray, "1 h w"]:
    """Read a 16-bit depth file [m]; raises `BadInput` for a damaged one and, with what to do, for one drawn in colours.

    `drawn` is that advice; empty: the general message alone.
    """
    if drawn:
        try:
            with Image.open(path) as image:
                mode = image.mode
        except DECODING_FAULTS as fault:
            raise BadInput(f"{path}: {fault_line(fault)}: the file is damaged or incomplete; write it again") from fault
        if not mode.startswith("I"):
            raise BadInput(
                f"{path} is of mode {mode}: depth drawn for people in colours or in 8 bits, of which no metres can be "
                f"told; {drawn}"
            )
    return read_depth(path, scale)


def refuse_other_sizes(photograph: Path, depth: Path, values: np.ndarray, source: str) -> None:
    """Raise `BadInput` for a photograph that is damaged, is to be turned, or has another size than depth [1, h, w]."""
    size, tag = stored_size(photograph, source)
    if tag > 1:
        raise BadInput(f"{photograph} has an EXIF rotation ({tag}), and those of {source} have none")
    if values.shape[1:] != size:
        raise BadInput(
            f"{depth} is {values.shape[1]} x {values.shape[2]} pixels (height x width), its photograph {photograph} is "
            f"{size[0]} x {size[1]}: depth has to be registered to the photograph"
        )


def lines_of(path: Path, source: str) -> list[str]:
    """The lines of a text file; raises `BadInput`, with where to get it from (`source`)."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not a text file"
        raise BadInput(f"{path} cannot be read: {reason}; fetch it again from {source}") from fault


def read_facts(path: Path, what: str) -> dict[str, Any]:
    """An object in a JSON file; raises `BadInput` for a file of another form, of which `what` says where it is from."""
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise BadInput(f"{path} cannot be read: {fault.strerror}; {what}") from fault
    return facts_of(content, str(path), what)


def facts_of(content: bytes, name: str, what: str) -> dict[str, Any]:
    """The object that a JSON text of this name holds; raises as `read_facts` does."""
    try:
        found = json.loads(content)
    except ValueError as fault:
        raise BadInput(f"{name} cannot be read: it is not JSON; {what}") from fault
    if not isinstance(found, dict):
        raise BadInput(f"{name} should hold {{...}}: {what}")
    return found
