"""ADE20K (Zhou et al. 2017) as a labelled folder: the scene parsing benchmark, 20,210 and 2,000 photographs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from depthjepa.data.images import Split
from depthjepa.data.prepare.labels import LabelledPair, by_value, matched, write_labelled
from depthjepa.data.prepare.writing import Prepared
from depthjepa.data.samples import VOID
from depthjepa.faults import BadInput

SOURCE = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"
FOLDER, NAMES = "ADEChallengeData2016", "objectInfo150.txt"
OTHER = 0  # the value of what is none of the classes; theirs are 1 to 150
PLACES: tuple[tuple[Split, str], ...] = ("train", "training"), ("val", "validation")


def prepare_ade20k(source: Path, out: Path) -> Prepared:
    """Bring `images/` and `annotations/` together, and name the classes as `objectInfo150.txt` does.

    Value 0 becomes void, 1 to 150 become 0 to 149. Photographs are hard links where the file system has them, else
    copies. Raises `BadInput` for files that are missing, damaged or something else.
    """
    if not source.is_dir():
        raise BadInput(f"there is no folder {source}: ADE20K is prepared from {SOURCE}")
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    classes = object_names(folder / NAMES)
    read = by_value({OTHER: VOID, **{index + 1: index for index in range(len(classes))}})
    pairs: list[LabelledPair] = []
    for split, place in PLACES:
        found = matched(folder / "images" / place, folder / "annotations" / place, (".jpg", ".png"), SOURCE)
        pairs += [LabelledPair(split, f"{name}.jpg", photo, labels, read, SOURCE) for name, photo, labels in found]
    return write_labelled(out, "ade20k", classes, pairs)


def object_names(path: Path) -> list[str]:
    """Names of the classes in the order of their numbers, by the first word for each that no other has.

    The file has columns between tabs, the number first and the words, separated by commas, last, under a line of heads.
    """
    try:
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not a text file"
        raise BadInput(f"{path} cannot be read: {reason}; it lies beside images/ in {SOURCE}") from fault
    rows = [(line[0].strip(), line[-1].strip()) for line in lines[1:]]
    if not rows or [number for number, _ in rows] != [str(number) for number in range(1, len(rows) + 1)]:
        raise BadInput(f"{path} does not number the classes from 1, a line each below its heads, as that of {SOURCE}")
    times = Counter(first_word(words) for _, words in rows)
    return [first_word(words) if times[first_word(words)] == 1 else words for _, words in rows]


def first_word(words: str) -> str:
    """`building` of `building, edifice`."""
    return words.partition(",")[0].strip()
