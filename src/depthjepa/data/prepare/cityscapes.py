"""Cityscapes (Cordts et al. 2016) as a labelled folder: 2,975 and 500 photographs with fine labels, 21 cities."""

from __future__ import annotations

from pathlib import Path

from depthjepa.data.listing import sub_folders
from depthjepa.data.prepare.labels import LabelledPair, by_value, matched, write_labelled
from depthjepa.data.prepare.writing import SPLITS, Prepared
from depthjepa.data.samples import VOID
from depthjepa.faults import BadInput

SOURCE = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip)"
PHOTOGRAPHS, LABELS = "leftImg8bit", "gtFine"
ENDINGS = "_leftImg8bit.png", "_gtFine_labelIds.png"
# The 19 classes that are judged, in the order of their training numbers, by the number that label maps have.
CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
LARGEST = 33  # the largest number in label maps; the others up to it are void


def prepare_cityscapes(source: Path, out: Path) -> Prepared:
    """Bring `leftImg8bit/SPLIT/CITY` and the label numbers of `gtFine/SPLIT/CITY` together, training and validation.

    The 19 classes that are judged get their training numbers, all others become void. An ID is `CITY/FRAME`.
    Photographs are hard links where the file system has them, else copies; `groups.json` has the cities. The test
    labels are not public. Raises `BadInput` for files that are missing, damaged or something else.
    """
    if not source.is_dir():
        raise BadInput(f"there is no folder {source}: Cityscapes is prepared from {SOURCE}")
    photographs, labels = (_holder(source, part) / part for part in (PHOTOGRAPHS, LABELS))
    judged = {number: index for index, number in enumerate(CLASSES)}
    read = by_value({number: judged.get(number, VOID) for number in range(LARGEST + 1)})
    pairs: list[LabelledPair] = []
    for split in SPLITS:
        found = matched(photographs / split, labels / split, ENDINGS, SOURCE)
        pairs += [LabelledPair(split, f"{name}.png", photo, map_, read, SOURCE) for name, photo, map_ in found]
    cities = dict.fromkeys(pair.photograph.partition("/")[0] for pair in pairs)
    return write_labelled(out, "cityscapes", tuple(CLASSES.values()), pairs, {f"{city}/": city for city in cities})


def _holder(source: Path, part: str) -> Path:
    """The folder that holds one of the two parts: the source, or one in it, as the archives are unpacked."""
    places = [source, *(source / name for name in sub_folders(source) if name != part)]
    found = next((place for place in places if (place / part).is_dir()), None)
    if found is None:
        raise BadInput(f"{source} holds no {part}/: unpack both archives there ({SOURCE})")
    return found
