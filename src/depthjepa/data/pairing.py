"""Which depth file belongs to which photograph, and which pairs are validation data: all of it by exact names.

The ID of a pair is the path of its photograph below `rgb`, without the suffix; its depth file has the same ID below
`depth`. Nothing is paired by resemblance, and nothing is left out: what has no other half is refused and named.
"""

from __future__ import annotations

import difflib
import glob
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from depthjepa.data.images import SUFFIXES, image_names
from depthjepa.faults import BadInput, nearest

DEPTH_SUFFIX = ".png"  # in any case of letters
ANY = "*"  # at the end of a beginning: it may end within a word


def identity(name: str) -> str:
    """ID of a pair: the path of its photograph below `rgb`, without the suffix (`z.k` of `z.k.jpg`)."""
    return str(PurePosixPath(name).with_suffix(""))


def paired(folder: Path) -> list[tuple[str, str]]:
    """Photographs and depth files, as paths below `folder/rgb` and `folder/depth`, in the order of the photographs.

    Raises `BadInput` for photographs without depth, depth without a photograph, two files of one ID, and depth that is
    no .png.
    """
    photographs = image_names(folder / "rgb")
    if not photographs:
        raise BadInput(f"{folder / 'rgb'} holds no images (accepted: {' '.join(SUFFIXES)})")
    depths = image_names(folder / "depth")
    if others := [name for name in depths if not name.lower().endswith(DEPTH_SUFFIX)]:
        raise BadInput(f"depth must be 16-bit .png files, but {folder / 'depth'} holds {some_of(others)}")
    photograph_of = _by_identity(photographs, folder / "rgb", "photographs")
    depth_of = _by_identity(depths, folder / "depth", "depth files")
    bare = sorted(photograph_of.keys() - depth_of.keys())
    lonely = sorted(depth_of.keys() - photograph_of.keys())
    if bare or lonely:
        faults = []
        if bare:
            faults.append(f"{len(bare)} of {len(photograph_of)} photographs have no depth: {some_of(bare)}")
        if lonely:
            faults.append(f"{len(lonely)} of {len(depth_of)} depth files have no photograph: {some_of(lonely)}")
        hint = _hint(folder, photograph_of, depth_of, bare, lonely)
        raise BadInput(f"{folder}: rgb/ and depth/ do not pair up; {'; '.join(faults)}{hint}")
    return [(name, depth_of[identity(name)]) for name in photographs]


def _by_identity(names: Iterable[str], folder: Path, what: str) -> dict[str, str]:
    found = defaultdict(list)
    for name in names:
        found[identity(name)].append(name)
    if twice := [name for several in found.values() if len(several) > 1 for name in several]:
        raise BadInput(f"{folder} holds several {what} of one name: {some_of(twice)}")
    return {key: only for key, (only,) in found.items()}


def _hint(
    folder: Path, photograph_of: dict[str, str], depth_of: dict[str, str], bare: Sequence[str], lonely: Sequence[str]
) -> str:
    """The nearest name of the other half, or the file of that name in a format that is not read."""
    rule = "the files of a pair have one name up to the suffix"
    for which, part, accepted in ((bare, "depth", DEPTH_SUFFIX), (lonely, "rgb", " ".join(SUFFIXES))):
        if which and (other := _of_other_format(folder / part, which[0])):
            return f"; {part}/{other} is there, but of a format that is not read (accepted: {accepted})"
    if bare and (near := _nearest(bare[0], lonely or list(depth_of))):
        return f"; {rule}: the nearest to rgb/{photograph_of[bare[0]]} is depth/{depth_of[near]}"
    if lonely and (near := _nearest(lonely[0], list(photograph_of))):
        return f"; {rule}: the nearest to depth/{depth_of[lonely[0]]} is rgb/{photograph_of[near]}"
    return ""


def _of_other_format(folder: Path, name: str) -> str:
    place = folder / name
    found = sorted(path.name for path in place.parent.glob(f"{glob.escape(place.name)}.*") if path.is_file())
    others = [each for each in found if not each.lower().endswith(SUFFIXES) and identity(each) == place.name]
    return (PurePosixPath(name).parent / others[0]).as_posix() if others else ""


def _nearest(name: str, others: Sequence[str]) -> str:
    """The shortest of `others` that holds the name or is held by it (`0001_depth` of `0001`), else the most similar."""
    word = name.casefold()
    holding = [each for each in others if word in each.casefold() or each.casefold() in word]
    if holding:
        return min(holding, key=len)
    start = max(0, bisect_left(others, name) - 500)  # of a large folder, its neighbours
    return next(iter(difflib.get_close_matches(name, others[start : start + 1000], n=1, cutoff=0.3)), "")


# validation data ------------------------------------------------------------------------------------------


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
