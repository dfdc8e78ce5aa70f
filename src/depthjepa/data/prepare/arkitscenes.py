"""ARKitScenes (Baruch et al. 2021) as an RGB-D folder: rooms seen by iPads with lidar.

The layout is that of https://github.com/apple/ARKitScenes, `DATA.md` and `raw/README.md`: photographs of 256 x 192 in
`lowres_wide`, depth in millimetres in `lowres_depth`, how sure the sensor is of it in `confidence` (0 to 2), each
`VIDEO_MOMENT.png`; `lowres_wide_intrinsics/VIDEO_MOMENT.pincam` holds `width height fx fy cx cy`, and a line of
`lowres_wide.traj` the moment, axis x angle [rad] and shift [m] by which a point of the place goes to the camera, whose
axes are x right, y down, z forward: so the data set's own `threedod/benchmark_scripts/utils/tenFpsDataLoader.py` reads
it, with the same slack in the moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.images import DECODING_FAULTS, Split, fault_line
from depthjepa.data.listing import sub_folders
from depthjepa.data.prepare.poses import PoseRows, pose_of_extrinsics
from depthjepa.data.prepare.recordings import (
    Recording,
    by_stem,
    folders_of,
    left_out,
    lines_of,
    nearest_moment,
    refuse_other_sizes,
    splits_of,
    whole_depth,
    write_recordings,
)
from depthjepa.data.prepare.writing import Prepared, link, millimetres, save_png
from depthjepa.faults import BadInput

SOURCE = "https://github.com/apple/ARKitScenes (download_data.py)"
PHOTOGRAPHS, DEPTHS, CONFIDENCE = "lowres_wide", "lowres_depth", "confidence"
INTRINSICS, POSES = "lowres_wide_intrinsics", "lowres_wide.traj"
FOLDS: tuple[tuple[str, Split], ...] = ("Training", "train"), ("Validation", "val")  # of a download
SURE = 2  # the most that a confidence can be
APART = 0.005  # [s] that a pose and a photograph may be apart
SLACK = 0.001  # [s], by which the name of a file of intrinsics may be another


def prepare_arkitscenes(
    source: Path, out: Path, *, val: str | None = None, every: int = 1, confidence: int = 0
) -> Prepared:
    """Bring photographs, depth and poses of ARKitScenes together, of the low resolution that the lidar has.

    `source` is a video (`lowres_wide/`, `lowres_depth/`, …; also below `VIDEO_frames/`), a folder of several, or a
    download with `Training/` and `Validation/`, which then are the splits; else `val` names the validation videos,
    separated by commas. Every `every`-th frame is taken. Depth of which the sensor is less sure than `confidence` (0 to
    2) is not measured. An ID is `VIDEO/FRAME`; files are hard links where they stay as they are and the file system has
    them, else copies.

    Raises `BadInput` for files that are missing, damaged or something else.
    """
    places, splits = _videos(source, val)
    remarks: list[str] = []
    recordings = [_recording(name, place, splits[name], every, confidence, remarks) for name, place in places.items()]
    name = f"arkitscenes-confidence{confidence}" if confidence else "arkitscenes"
    return write_recordings(out, name, recordings, remarks=remarks)


@dataclass(frozen=True, slots=True)
class _ArkitPair:
    split: Split
    photograph: str
    from_photograph: Path
    from_depth: Path
    from_confidence: Path
    confidence: int

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Link both, or write the depth without what the sensor is not sure of; returns metres."""
        metres = whole_depth(self.from_depth, MILLIMETRES)
        refuse_other_sizes(self.from_photograph, self.from_depth, metres, SOURCE)
        link(self.from_photograph, photograph)
        if not self.confidence:
            link(self.from_depth, beside)
            return metres
        sure = _confidence(self.from_confidence)
        if sure.shape != metres.shape[1:]:
            raise BadInput(f"{self.from_confidence} is not of the size of {self.from_depth}: fetch both from {SOURCE}")
        metres = np.where(sure >= self.confidence, metres, 0)
        save_png(beside, millimetres(metres[0]))
        return metres


def _videos(source: Path, val: str | None) -> tuple[dict[str, Path], dict[str, Split]]:
    """Videos and their splits, by their names."""
    what = (
        f"ARKitScenes is prepared from a video ({PHOTOGRAPHS}/ beside {DEPTHS}/), a folder of videos, or one with "
        f"Training/ and Validation/ ({SOURCE})"
    )
    folds = [(split, source / fold) for fold, split in FOLDS if (source / fold).is_dir()]
    if not folds:
        places = folders_of(source, lambda place: _frames(place) is not None, what)
        splits = splits_of(list(places), val)
    elif val is not None:
        raise BadInput(f"{source} has its own splits, Training/ and Validation/: leave out --val")
    else:
        places, splits = {}, {}
        for split, folder in folds:
            found = folders_of(folder, lambda place: _frames(place) is not None, what)
            places |= found
            splits |= dict.fromkeys(found, split)
    return {name: _frames(place) or place for name, place in places.items()}, splits


def _frames(video: Path) -> Path | None:
    """The folder that holds the frames of a video: itself, or `VIDEO_frames` in it."""
    places = [video, *(video / name for name in sub_folders(video) if name.endswith("_frames"))]
    return next((each for each in places if all((each / part).is_dir() for part in (PHOTOGRAPHS, DEPTHS))), None)


def _recording(name: str, place: Path, split: Split, every: int, confidence: int, remarks: list[str]) -> Recording:
    photographs, depths = (by_stem(place / part, (".png",)) for part in (PHOTOGRAPHS, DEPTHS))
    if confidence and not (place / CONFIDENCE).is_dir():
        raise BadInput(
            f"{place} has no {CONFIDENCE}/, which --confidence {confidence} asks for: fetch it from {SOURCE}"
        )
    sure = by_stem(place / CONFIDENCE, (".png",)) if confidence else depths
    both = [stem for stem in photographs if stem in depths and stem in sure]
    if not both:
        raise BadInput(f"{place}: no photograph of {PHOTOGRAPHS}/ has depth of its name in {DEPTHS}/")
    # Frames at 60 a second, of which not all have everything (raw/README.md).
    remarks += left_out(
        name, f"of {len(photographs)} photographs have no depth of their name", len(photographs) - len(both)
    )
    moments, known = _poses(place / POSES) if (place / POSES).is_file() else (np.zeros(0), [])
    pairs: list[_ArkitPair] = []
    poses: dict[str, PoseRows] = {}
    lengths = []
    for stem in both[::every]:
        moment = _moment(stem, place)
        pair = _ArkitPair(split, f"{name}/{stem}.png", photographs[stem], depths[stem], sure[stem], confidence)
        pairs.append(pair)
        if (found := nearest_moment(moments, moment, APART)) is not None:
            poses[pair.photograph] = known[found]
        if (length := _focal_length(place / INTRINSICS, stem, moment)) is not None:
            lengths.append(length)
    if len(poses) < len(pairs):
        remarks.append(f"{name}: {len(pairs) - len(poses)} of {len(pairs)} pairs have no pose")
    return Recording(name=name, pairs=pairs, poses=poses, focal_length=float(np.median(lengths)) if lengths else None)


def _moment(stem: str, place: Path) -> float:
    """The moment [s] that a name `VIDEO_MOMENT` tells."""
    try:
        return float(stem.rpartition("_")[2])
    except ValueError as fault:
        raise BadInput(f"{place}: {stem}.png is not named VIDEO_MOMENT.png, as in 47333462_1234.567.png") from fault


def _focal_length(folder: Path, stem: str, moment: float) -> float | None:
    """Focal length [px] of a frame, None where no file says it."""
    video = stem.rpartition("_")[0]
    names = [stem, *(f"{video}_{moment + shift:.3f}" for shift in (-SLACK, SLACK))]
    path = next((folder / f"{name}.pincam" for name in names if (folder / f"{name}.pincam").is_file()), None)
    if path is None:
        return None
    form = "WIDTH HEIGHT FX FY CX CY"
    rows = _numbers(path, 6, form)
    if len(rows) != 1 or not rows[0][2] > 0:
        raise BadInput(f"{path} does not hold {form}: fetch it again from {SOURCE}")
    return rows[0][2]


def _poses(path: Path) -> tuple[Float[np.ndarray, " poses"], list[PoseRows]]:
    moments, poses = [], []
    for moment, *numbers in _numbers(path, 7, "TIMESTAMP AXIS_ANGLE(3) SHIFT(3)"):
        if (pose := pose_of_extrinsics(numbers[:3], numbers[3:])) is not None:
            moments.append(moment)
            poses.append(pose)
    return np.array(moments), poses


def _numbers(path: Path, count: int, form: str) -> list[list[float]]:
    """The numbers of each line that holds any."""
    rows = []
    for number, line in enumerate(lines_of(path, SOURCE), start=1):
        try:
            words = [float(word) for word in line.split()]
        except ValueError:
            words = []
        if line.strip() and len(words) != count:
            raise BadInput(f"{path}, line {number}: {line!r} is not of the form {form}; fetch it again from {SOURCE}")
        rows += [words] if words else []
    return rows


def _confidence(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except DECODING_FAULTS as fault:
        raise BadInput(f"{path}: {fault_line(fault)}: the file is damaged; fetch it again from {SOURCE}") from fault
    if values.ndim != 2 or values.max(initial=0) > SURE:
        raise BadInput(f"{path} does not hold confidences from 0 to {SURE}: fetch it again from {SOURCE}")
    return values
