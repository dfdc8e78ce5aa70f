"""TUM RGB-D (Sturm et al. 2012) as an RGB-D folder: recordings of a Kinect with poses from a motion capture system.

The layout is that of https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats: `rgb.txt` and `depth.txt` name the
files with their moments, depth is registered to the photographs, 5000 units are a metre, 0 is not measured, and a line
of `groundtruth.txt` is `timestamp tx ty tz qx qy qz qw`, from the camera to the place. The focal lengths are those of
the colour cameras there.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from depthjepa.data.images import Split
from depthjepa.data.pairing import some_of
from depthjepa.data.prepare.poses import PoseRows, pose_of_quaternion
from depthjepa.data.prepare.recordings import (
    LinkedPair,
    Recording,
    associated,
    folders_of,
    left_out,
    lines_of,
    nearest_moment,
    splits_of,
    write_recordings,
)
from depthjepa.data.prepare.writing import Prepared
from depthjepa.faults import BadInput

SOURCE = "https://cvg.cit.tum.de/data/datasets/rgbd-dataset/download"
SCALE = 5000.0  # file units per metre
FOCAL_LENGTHS = {"1": 517.3, "2": 520.9, "3": 535.4}  # [px] of the camera that a name like freiburg1 tells
CAMERA = re.compile(r"freiburg([123])")
PHOTOGRAPHS, DEPTHS, POSES = "rgb.txt", "depth.txt", "groundtruth.txt"
APART = 0.02  # [s]


def prepare_tum(
    source: Path, out: Path, *, val: str | None = None, every: int = 1, max_difference: float = APART
) -> Prepared:
    """Bring photographs and depth of the same moments together; the values of the depth stay as they are.

    `source` is one recording, a folder with `rgb.txt` and `depth.txt`, or a folder of several. Pairs are the closest in
    time, less than `max_difference` [s] apart, of which every `every`-th is taken; a pose is the nearest in time within
    the same limit. `val` names the validation recordings, separated by commas. An ID is `RECORDING/MOMENT`. Files are
    hard links where the file system has them, else copies.

    Raises `BadInput` for files that are missing, damaged or something else.
    """
    places = folders_of(
        source,
        lambda place: (place / PHOTOGRAPHS).is_file() and (place / DEPTHS).is_file(),
        f"TUM RGB-D is prepared from an unpacked recording ({PHOTOGRAPHS}, {DEPTHS}), or a folder of them ({SOURCE})",
    )
    splits = splits_of(list(places), val)
    remarks: list[str] = []
    recordings = [
        _recording(name, place, splits[name], every, max_difference, remarks) for name, place in places.items()
    ]
    return write_recordings(out, "tum-rgbd", recordings, scale=SCALE, remarks=remarks)


def _recording(name: str, place: Path, split: Split, every: int, limit: float, remarks: list[str]) -> Recording:
    (moments, photographs), (others, depths) = (_listed(place / part) for part in (PHOTOGRAPHS, DEPTHS))
    together = associated(moments, others, limit)
    if not together:
        raise BadInput(
            f"{place}: no photograph and depth file are less than {limit:g} s apart (--max-difference): are "
            f"{PHOTOGRAPHS} and {DEPTHS} of one recording?"
        )
    remarks += left_out(
        name, f"of {len(moments)} photographs have no depth of their time", len(moments) - len(together)
    )
    pairs: list[LinkedPair] = []
    poses: dict[str, PoseRows] = {}
    known = _poses(place / POSES) if (place / POSES).is_file() else None
    for one, other in together[::every]:
        file = place / photographs[one]
        pairs.append(LinkedPair(split, f"{name}/{file.name}", file, place / depths[other], SCALE, SOURCE))
        found = None if known is None else nearest_moment(known[0], float(moments[one]), limit)
        if known is not None and found is not None:
            poses[pairs[-1].photograph] = known[1][found]
    if missing := [
        str(path) for pair in pairs for path in (pair.from_photograph, pair.from_depth) if not path.is_file()
    ]:
        raise BadInput(
            f"{len(missing)} files that {PHOTOGRAPHS} and {DEPTHS} name are missing: there is no {some_of(missing)}; "
            f"unpack the recording again ({SOURCE})"
        )
    if len(poses) < len(pairs):
        remarks.append(f"{name}: {len(pairs) - len(poses)} of {len(pairs)} pairs have no pose")
    camera = CAMERA.search(name)
    return Recording(name=name, pairs=pairs, poses=poses, focal_length=FOCAL_LENGTHS[camera[1]] if camera else None)


def _listed(path: Path) -> tuple[Float[np.ndarray, " files"], list[str]]:
    """Moments [s] and names of files, in the order of a list."""
    rows = _rows(path, 2, "TIMESTAMP FILE")
    if not rows:
        raise BadInput(f"{path} names no files: fetch the recording again from {SOURCE}")
    return np.array([moment for moment, _ in rows]), [words[0] for _, words in rows]


def _poses(path: Path) -> tuple[Float[np.ndarray, " poses"], list[PoseRows]]:
    """Moments [s] and poses; lines that hold no turn are passed over, as of moments that were not seen."""
    form = "TIMESTAMP TX TY TZ QX QY QZ QW"
    moments, poses = [], []
    for moment, words in _rows(path, 8, form):
        try:
            numbers = [float(word) for word in words]
        except ValueError as fault:
            raise BadInput(f"{path}: the line of {moment:.4f} is not of the form {form}") from fault
        if (pose := pose_of_quaternion(numbers[3:], numbers[:3])) is not None:
            moments.append(moment)
            poses.append(pose)
    return np.array(moments), poses


def _rows(path: Path, words: int, form: str) -> list[tuple[float, list[str]]]:
    """The moment [s] and the other words of each line that is no comment; commas and tabulators separate as well."""
    rows = []
    for number, line in enumerate(lines_of(path, SOURCE), start=1):
        parts = line.replace(",", " ").split()
        if not parts or line.startswith("#"):
            continue
        try:
            if len(parts) != words:
                raise ValueError
            rows.append((float(parts[0]), parts[1:]))
        except ValueError as fault:
            raise BadInput(f"{path}, line {number}: {line!r} is not of the form {form}") from fault
    return rows
