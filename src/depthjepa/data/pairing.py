"""Which depth file or label map belongs to which photograph, and which pairs are validation data: all by exact names.

The ID of a pair is the path of its photograph below `rgb`, without the suffix; what goes with it has the same ID below
a folder of its own (`Beside`). Nothing is paired by resemblance, and nothing is left out: what has no other half is
refused and named.
"""

from __future__ import annotations

import difflib
import glob
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from depthjepa.data import depth_files
from depthjepa.data.images import SUFFIXES, Split
from depthjepa.data.listing import image_names, list_images
from depthjepa.faults import BadInput, nearest

PHOTOGRAPHS = "rgb"  # the folder that holds them
SUFFIX = ".png"  # of what usually lies beside them, in any case of letters
ANY = "*"  # at the end of a beginning: it may end within a word


@dataclass(frozen=True, slots=True)
class Beside:
    """What lies beside the photographs of a layout: the name of its folder, and what messages call it."""

    folder: str
    noun: str  # of the layout, as in "RGB-D folder"
    one: str  # "have no depth"
    several: str  # "depth files"
    rule: str  # "label maps must be 8-bit .png files"
    formats: tuple[tuple[str, ...], ...]  # the endings of each; a folder is of one of them

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All endings of files that may lie beside photographs, in small letters."""
        return tuple(suffix for format in self.formats for suffix in format)


DEPTH = Beside(
    "depth",
    "RGB-D folder",
    "depth",
    "depth files",
    "depth must be 16-bit .png files (or .tiff, .exr or .npy files of floats)",
    ((depth_files.PNG,), depth_files.TIFF, (depth_files.EXR,), (depth_files.NPY,)),
)
LABELS = Beside(
    "labels", "labelled folder", "label map", "label maps", "label maps must be 8-bit .png files", ((SUFFIX,),)
)


def identity(name: str) -> str:
    """ID of a pair: the path of its photograph below `rgb`, without the suffix (`z.k` of `z.k.jpg`)."""
    stem, dot, suffix = name.rpartition(".")  # as `PurePath.with_suffix` does, in a tenth of the time
    has_suffix = dot and suffix and "/" not in suffix and stem[-1:] not in ("", "/")
    return stem if has_suffix else name


def has_splits(folder: Path, beside: Beside) -> bool:
    """Whether a folder holds photographs with what lies beside them in `train` or `val`."""
    return any(_has_both(folder / split, beside) for split in ("train", "val"))


def is_undivided(folder: Path, beside: Beside) -> bool:
    """Whether a folder holds the photographs and what lies beside them itself, not sorted into `train` and `val`."""
    divided = any((folder / split / PHOTOGRAPHS).is_dir() for split in ("train", "val"))
    return not divided and _has_both(folder, beside)


def _has_both(folder: Path, beside: Beside) -> bool:
    return all((folder / part).is_dir() for part in (PHOTOGRAPHS, beside.folder))


def place_of(root: Path, split: Split, beside: Beside, *, divided: bool) -> PurePosixPath:
    """Where the pairs of a split stand below the folder; `divided`: the user says which of them are validation data.

    Raises `BadInput` where they do not, or it is unclear which are the validation data.
    """
    undivided = is_undivided(root, beside)
    if divided and not undivided and (root / "val").is_dir():
        raise BadInput(f"data.val_prefixes and data.val_list are for pairs without val/, but {root} has its own val/")
    if split == "val" and not divided and (undivided or not (root / "val").is_dir()):
        raise BadInput(
            f"{root} has no val/: say which pairs are validation data, by the beginnings of their IDs "
            f"(data.val_prefixes=[kitchen,bath]) or a file of IDs (data.val_list=FILE)"
        )
    place = PurePosixPath("." if undivided else "train" if divided else split)
    for part in (PHOTOGRAPHS, beside.folder):
        if not (root / place / part).is_dir():
            article = "an" if beside.noun[:3] == "RGB" else "a"
            raise BadInput(
                f"{root} is read as {article} {beside.noun}, but has no {place / part}/ "
                f"(needed: {place / PHOTOGRAPHS / 'ID.jpg'} and {place / beside.folder / f'ID{SUFFIX}'})"
            )
    return place


def paired(folder: Path, beside: Beside) -> list[tuple[str, str]]:
    """Photographs and what lies beside them, as paths below the two folders, in the order of the photographs.

    Raises `BadInput` for photographs without the other half, halves without a photograph, two files of one ID, other
    images among the other halves, and several formats of them.
    """
    place = folder / beside.folder
    photographs = image_names(folder / PHOTOGRAPHS)
    if not photographs:
        raise BadInput(f"{folder / PHOTOGRAPHS} holds no images (accepted: {' '.join(SUFFIXES)})")
    maps = names_beside(place, beside)
    suffixes = beside.suffixes
    if others := [name for name in maps if not name.lower().endswith(suffixes)]:
        raise BadInput(f"{beside.rule}, but {place} holds {some_of(others)}")
    of_each = [[name for name in maps if name.lower().endswith(format)] for format in beside.formats]
    if len(kinds := [names for names in of_each if names]) > 1:
        counted = " and ".join(f"{len(names)} {PurePosixPath(names[0]).suffix} ({names[0]})" for names in kinds)
        raise BadInput(f"{place} holds {beside.several} of several formats, {counted}: keep those of one there")
    photograph_of = _by_identity(photographs, folder / PHOTOGRAPHS, "photographs")
    map_of = _by_identity(maps, place, beside.several)
    bare = sorted(photograph_of.keys() - map_of.keys())
    lonely = sorted(map_of.keys() - photograph_of.keys())
    if bare or lonely:
        faults = []
        if bare:
            faults.append(f"{len(bare)} of {len(photograph_of)} photographs have no {beside.one}: {some_of(bare)}")
        if lonely:
            faults.append(f"{len(lonely)} of {len(map_of)} {beside.several} have no photograph: {some_of(lonely)}")
        hint = _hint(folder, beside, photograph_of, map_of, bare, lonely)
        raise BadInput(f"{folder}: {PHOTOGRAPHS}/ and {beside.folder}/ do not pair up; {'; '.join(faults)}{hint}")
    return [(name, map_of[identity(name)]) for name in photographs]


def names_beside(place: Path, beside: Beside) -> list[str]:
    """What lies in the folder beside the photographs, and images that do not belong there."""
    return list_images(place, suffixes=tuple(dict.fromkeys((*SUFFIXES, *beside.suffixes)))).names


def _by_identity(names: Iterable[str], folder: Path, what: str) -> dict[str, str]:
    found = defaultdict(list)
    for name in names:
        found[identity(name)].append(name)
    if twice := [name for several in found.values() if len(several) > 1 for name in several]:
        raise BadInput(f"{folder} holds several {what} of one name: {some_of(twice)}")
    return {key: only for key, (only,) in found.items()}


def _hint(
    folder: Path,
    beside: Beside,
    photograph_of: dict[str, str],
    map_of: dict[str, str],
    bare: Sequence[str],
    lonely: Sequence[str],
) -> str:
    """The nearest name of the other half, or the file of that name in a format that is not read."""
    rule = "the files of a pair have one name up to the suffix"
    for which, part, accepted in ((bare, beside.folder, beside.suffixes), (lonely, PHOTOGRAPHS, SUFFIXES)):
        if which and (other := _of_other_format(folder / part, which[0], accepted)):
            return f"; {part}/{other} is there, but of a format that is not read (accepted: {' '.join(accepted)})"
    rgb, maps = PHOTOGRAPHS, beside.folder
    if bare and (near := _nearest(bare[0], lonely or list(map_of))):
        return f"; {rule}: the nearest to {rgb}/{photograph_of[bare[0]]} is {maps}/{map_of[near]}"
    if lonely and (near := _nearest(lonely[0], list(photograph_of))):
        return f"; {rule}: the nearest to {maps}/{map_of[lonely[0]]} is {rgb}/{photograph_of[near]}"
    return ""


def _of_other_format(folder: Path, name: str, accepted: tuple[str, ...]) -> str:
    place = folder / name
    found = sorted(path.name for path in place.parent.glob(f"{glob.escape(place.name)}.*") if path.is_file())
    others = [each for each in found if not each.lower().endswith(accepted) and identity(each) == place.name]
    return (PurePosixPath(name).parent / others[0]).as_posix() if others else ""


def _nearest(name: str, others: Sequence[str]) -> str:
    """The shortest of `others` that holds the name or is held by it (`0001_depth` of `0001`), else the most similar."""
    word = name.casefold()
    holding = [each for each in others if word in each.casefold() or each.casefold() in word]
    if holding:
        return min(holding, key=len)
    start = max(0, bisect_left(others, name) - 500)  # of a large folder, its neighbours
    return next(iter(difflib.get_close_matches(name, others[start : start + 1000], n=1, cutoff=0.3)), "")


def held_out(
    identities: Iterable[str], root: Path, prefixes: Sequence[str] | None, listed: str | Path | None
) -> frozenset[str]:
    """IDs of the validation pairs, by beginnings of IDs or a file of them.

    A beginning ends where a word ends, so `scene_1` takes `scene_1_0001` and `scene_1/0001`, not `scene_10_0001`;
    `scene_1*` takes both. A line of the file that is an ID means that pair alone, even if other IDs begin with it.
    """
    if prefixes is not None and listed is not None:
        raise BadInput("data.val_prefixes and data.val_list both say which pairs are validation data: give one")
    key = "data.val_prefixes" if listed is None else f"data.val_list={listed}"
    there = sorted(identities)
    words = list(prefixes or ()) if listed is None else _lines(Path(listed).expanduser())
    if not words:
        raise BadInput(f"{key} names no pairs: give at least one ID, or the beginning of some")
    alone = set() if listed is None else set(there).intersection(words)
    found = set(alone)
    for word in words:
        if word in alone:
            continue
        begun = _beginning_with(word.removesuffix(ANY), there)
        taken = begun if word.endswith(ANY) else [each for each in begun if _ends_a_word(word, each)]
        if not taken:
            raise BadInput(f"{key}: no pair of {root} has an ID that begins with {_why_none(word, begun, there)}")
        found.update(taken)
    if len(found) == len(there):
        raise BadInput(f"{key} matches all {len(there)} pairs of {root}: none is left for training")
    return frozenset(found)


def _beginning_with(word: str, there: Sequence[str]) -> list[str]:
    first = end = bisect_left(there, word)
    while end < len(there) and there[end].startswith(word):
        end += 1
    return list(there[first:end])


def _ends_a_word(word: str, name: str) -> bool:
    """Whether the beginning `word` of a name ends with it, or beside what is neither a letter nor a digit."""
    return not (word[-1:].isalnum() and name[len(word) : len(word) + 1].isalnum())


def _why_none(word: str, begun: Sequence[str], there: Sequence[str]) -> str:
    if begun:
        return (
            f"{word!r} and ends there or goes on with a separator ({some_of(begun)}); for all that begin so write "
            f"{word + ANY!r}"
        )
    return f"{word!r}{nearest(word, there)}; its IDs are {some_of(there)}"


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of some systems begin a file with a mark
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not a text file"
        raise BadInput(f"data.val_list={path} cannot be read: {reason}") from fault
    return [line.strip() for line in text.splitlines() if line.strip()]


def some_of(names: Sequence[str]) -> str:
    """Name the first three and count the others, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
