"""KITTI as an RGB-D folder: the depth prediction benchmark (Uhrig et al. 2017), raw images (Geiger et al. 2013)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthjepa.data.dataset_facts import DatasetFacts, EvaluationCrop
from depthjepa.data.images import Split
from depthjepa.data.listing import sub_folders
from depthjepa.data.pairing import some_of
from depthjepa.data.prepare.writing import SPLITS, Prepared, link, read_depth, stored_size, write_all
from depthjepa.faults import BadInput

# Garg et al. 2016, as evaluations on KITTI have it.
GARG = EvaluationCrop("garg", (0.40810811, 0.03594771, 0.99189189, 0.96405229))
RANGE = (0.001, 80.0)  # [m]
FOCAL_LENGTH = 721.5377  # [px] of 2011_09_26, which most drives are of; the other days' differ by up to 2 %
SCALE = 256.0  # file units per metre

BENCHMARK = "https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_prediction"
RAW = "https://www.cvlibs.net/datasets/kitti/raw_data.php"

DATE = re.compile(r"\d{4}_\d\d_\d\d")
DRIVE = re.compile(rf"{DATE.pattern}_drive_\d+_sync")
# 2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png
PHOTOGRAPH = re.compile(
    rf"(?P<date>{DATE.pattern})/(?P<drive>{DRIVE.pattern})/(?P<camera>image_0\d)/data/(?P<frame>\d+)\.\w+"
)
CAMERAS = ("image_02", "image_03")


def prepare_kitti(source: Path, out: Path, *, raw: Path | None = None, split: Path | None = None) -> Prepared:
    """Bring depth of the KITTI benchmark and the raw photographs together; the values of the depth stay as they are.

    `source` is the unpacked annotated depth (`train/DRIVE/proj_depth/groundtruth/image_02/*.png`, `val/…`), or
    `val_selection_cropped`; `raw` holds `DATE/DRIVE/image_02/data/*.png`, by default `source` or a folder in it. With
    `split`, a list in the form of the Eigen split (`PHOTOGRAPH DEPTH [FOCAL]` a line, depth `None` left out), its pairs
    are the validation data, and training pairs come from drives that it does not name. An ID is `DRIVE/CAMERA/FRAME`,
    and a drive is a group (`groups` in `dataset.json`). Files are hard links where the file system has them, else
    copies.

    Raises `BadInput` for files that are missing, damaged or something else.
    """
    if not source.is_dir():
        raise BadInput(f"there is no folder {source}: KITTI is prepared from its annotated depth maps ({BENCHMARK})")
    pairs: list[_KittiPair] = []
    if (source / "groundtruth_depth").is_dir():
        if raw is not None or split is not None:
            raise BadInput(
                f"{source} has its own photographs and is validation data as a whole: leave out --raw, --split"
            )
        pairs, crop = _selection(source), None
    else:
        places = _drives(source)
        photographs = _raw_folder(source, raw)
        if split is None:
            for word in SPLITS:
                pairs += _annotated(source / word, places[word], word, photographs)
        else:
            pairs, named = _listed(split, source, photographs)
            for word in SPLITS:
                others = [drive for drive in places[word] if drive not in named]
                pairs += _annotated(source / word, others, "train", photographs)
        crop = GARG
    _refuse_missing(pairs, source)
    facts = DatasetFacts(
        name="kitti" if crop is not None else "kitti-val-selection",
        depth_scale=SCALE,
        range=RANGE,
        evaluation_crop=crop,
        focal_length=FOCAL_LENGTH,
        groups=tuple((drive, drive) for drive in sorted({pair.drive for pair in pairs})),
    )
    return write_all(out, facts, pairs)


@dataclass(frozen=True, slots=True)
class _KittiPair:
    split: Split
    identity: str
    from_photograph: Path
    from_depth: Path

    @property
    def photograph(self) -> str:
        return f"{self.identity}{self.from_photograph.suffix}"

    @property
    def drive(self) -> str:
        """Where it was taken: what the two cameras of a drive see, in any frame, is all but the same."""
        found = DRIVE.match(self.identity)
        return self.identity if found is None else found[0]

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Link both as they are; returns metres."""
        size = _size(self.from_photograph)
        values = read_depth(self.from_depth, SCALE)
        if values.shape[1:] != size:
            raise BadInput(
                f"{self.from_depth} is {values.shape[1]} x {values.shape[2]} pixels (height x width), its photograph "
                f"{self.from_photograph} is {size[0]} x {size[1]}: they are not of one drive"
            )
        link(self.from_photograph, photograph)
        link(self.from_depth, beside)
        return values


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph that is whole; the depth lies as it is stored, so no tag may turn it."""
    size, tag = stored_size(path, RAW)
    if tag > 1:
        raise BadInput(f"{path} has an EXIF rotation ({tag}), and KITTI's photographs have none: fetch it from {RAW}")
    return size


def _drives(source: Path) -> dict[Split, list[str]]:
    """Drives of `train/` and `val/` that have annotated depth."""
    found: dict[Split, list[str]] = {"train": [], "val": []}
    for split, drives in found.items():
        if (source / split).is_dir():
            drives += [
                name
                for name in sub_folders(source / split)
                if (source / split / name / "proj_depth" / "groundtruth").is_dir()
            ]
    if not any(found.values()):
        raise BadInput(
            f"{source} holds no annotated depth: expected train/DRIVE_sync/proj_depth/groundtruth/image_02/*.png and "
            f"val/… (data_depth_annotated.zip of {BENCHMARK}, unpacked), or the folder val_selection_cropped"
        )
    return found


def _raw_folder(source: Path, raw: Path | None) -> Path:
    """The folder that holds `DATE/DRIVE/image_02/data`."""
    places = [source, *(source / name for name in sub_folders(source))] if raw is None else [raw]
    for place in places:
        if place.is_dir() and any(DATE.fullmatch(name) for name in sub_folders(place)):
            return place
    raise BadInput(
        f"{source if raw is None else raw} holds no photographs: expected DATE/DRIVE_sync/image_02/data/*.png, as in "
        f"2011_09_26/2011_09_26_drive_0001_sync/…; fetch the synced and rectified raw data from {RAW}, and name "
        f"their folder (--raw DIR)"
    )


def _annotated(folder: Path, drives: Sequence[str], split: Split, photographs: Path) -> list[_KittiPair]:
    """All pairs of some drives of `train/` or `val/` of the benchmark."""
    return [
        _KittiPair(split, f"{drive}/{camera}/{depth.stem}", _photograph(photographs, drive, camera, depth.stem), depth)
        for drive in drives
        for camera in CAMERAS
        for depth in sorted((folder / drive / "proj_depth" / "groundtruth" / camera).glob("*.png"))
    ]


def _photograph(photographs: Path, drive: str, camera: str, frame: str) -> Path:
    place = photographs / drive[:10] / drive / camera / "data"
    png, jpeg = place / f"{frame}.png", place / f"{frame}.jpg"  # the raw data are often kept as JPEG
    return jpeg if not png.exists() and jpeg.exists() else png


def _listed(path: Path, source: Path, photographs: Path) -> tuple[list[_KittiPair], set[str]]:
    """Pairs of a list in the form of the Eigen split, and all drives that it names."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not a text file"
        raise BadInput(f"--split {path} cannot be read: {reason}") from fault
    pairs, drives = [], set()
    for number, line in enumerate(lines, start=1):
        if not (words := line.split()):
            continue
        found = PHOTOGRAPH.fullmatch(words[0].lstrip("/"))
        if found is None or len(words) not in (2, 3):
            raise BadInput(
                f"{path}, line {number}: {line!r} is not of the form PHOTOGRAPH DEPTH [FOCAL], as in 2011_09_26/"
                f"2011_09_26_drive_0002_sync/image_02/data/0000000069.png 2011_09_26_drive_0002_sync/proj_depth/"
                f"groundtruth/image_02/0000000069.png 721.5377 (or None for DEPTH)"
            )
        drive, camera, frame = found["drive"], found["camera"], found["frame"]
        drives.add(drive)
        if words[1] != "None":
            places = [place / words[1].lstrip("/") for place in (source, source / "train", source / "val")]
            depth = next((place for place in places if place.is_file()), places[0])
            photograph = _photograph(photographs, drive, camera, frame)
            pairs.append(_KittiPair("val", f"{drive}/{camera}/{frame}", photograph, depth))
    if not pairs:
        raise BadInput(f"{path} lists no pair with depth")
    return pairs, drives


def _selection(source: Path) -> list[_KittiPair]:
    """Pairs of `val_selection_cropped`."""
    return [
        _KittiPair("val", depth.stem.replace("_groundtruth_depth_", "_image_"), photograph, depth)
        for depth in sorted((source / "groundtruth_depth").glob("*.png"))
        for photograph in [source / "image" / depth.name.replace("_groundtruth_depth_", "_image_")]
    ]


def _refuse_missing(pairs: Sequence[_KittiPair], source: Path) -> None:
    if not pairs:
        raise BadInput(f"{source} holds no depth maps of {' or '.join(CAMERAS)} (.png): is it unpacked? ({BENCHMARK})")
    if lonely := [str(pair.from_photograph) for pair in pairs if not pair.from_photograph.is_file()]:
        raise BadInput(
            f"{len(lonely)} of {len(pairs)} depth maps have no photograph: there is no {some_of(lonely)}; fetch the "
            f"synced and rectified raw data of these drives from {RAW}"
        )
    if lonely := [str(pair.from_depth) for pair in pairs if not pair.from_depth.is_file()]:
        raise BadInput(
            f"{len(lonely)} of {len(pairs)} listed depth maps are missing: there is no {some_of(lonely)}; fetch the "
            f"annotated depth maps from {BENCHMARK}"
        )
