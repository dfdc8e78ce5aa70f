"""The images below a folder, by their names; what lies beside them is passed over and told."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from depthjepa.data.images import HEIC, SUFFIXES
from depthjepa.data.kept_folders import Entries, Identity, entries_of, kept, names_in, real_folder
from depthjepa.faults import BadInput

# Folders that file browsers, network drives and archives leave among images.
LEFT_BY_SYSTEMS = ("@eadir", "__macosx")
THUMBNAILS = ("thumbnails", "thumbs")  # beside images: smaller copies of them


@dataclass(frozen=True, slots=True)
class Listing:
    """The images below a folder as sorted relative paths, and how often what was passed over, in words."""

    names: list[str]
    ignored: Mapping[str, int]


def list_images(folder: Path, read: set[Identity] | None = None, suffixes: tuple[str, ...] | None = None) -> Listing:
    """The images below `folder` at any depth, and what else is there.

    Files are told by their endings, `suffixes` in small letters (by default those of images). Hidden ones, and folders
    of thumbnails, of network drives and of archives are passed over. Each real folder is read once, by its own path
    where it has one below `folder`, else by the first link to it; a link to a folder above, or to one that was `read`
    before, is not followed. `read`, which has those above as well unless `folder` is a link, gets the folders to it.
    What a large folder holds is kept (`kept_folders`).

    Raises `BadInput` where a folder cannot be listed.
    """
    suffixes = SUFFIXES if suffixes is None else suffixes
    names: list[str] = []
    ignored: Counter[str] = Counter()
    above = folders_above(folder) if read is None or folder.is_symlink() else set()
    read = set() if read is None else read
    read |= above
    own, links = [folder], list[Path]()
    with kept(folder):
        while own or links:
            if own:
                place = own.pop()
            elif real_folder(place := links.pop(0)) in read:
                ignored["link to a folder that is read already, or lies above"] += 1
                continue
            identity, entries = entries_of(place)
            read.add(identity)
            found = _visible(place, entries)
            if found.hidden:
                ignored["hidden"] += found.hidden
            if found.others:
                ignored["pipe, socket or device"] += len(found.others)
            images = [name for name in found.files if name.lower().endswith(suffixes)]
            if len(images) < len(found.files):
                ignored.update(ending(name) for name in found.files if not name.lower().endswith(suffixes))
            below = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
            names += [below + name for name in images]
            beside = any(name.lower().endswith(suffixes) for name in (*found.folders, *found.linked, *found.others))
            passed_over = (*LEFT_BY_SYSTEMS, *(THUMBNAILS if images or beside else ()))
            for several, there in ((own, found.folders), (links, found.linked)):
                for name in there:
                    if name.lower() in passed_over:
                        ignored[f"{name}/"] += 1
                    else:
                        several.append(place / name)
            if found.linked:
                links.sort()
    return Listing(sorted(names), ignored)


def folders_above(folder: Path) -> set[Identity]:
    """The real folders that a folder lies in; raises `BadInput` where one cannot be looked at."""
    return {real_folder(each) for each in Path(os.path.realpath(folder)).parents}


def image_names(folder: Path) -> list[str]:
    """The names of `list_images`."""
    return list_images(folder).names


def ending(name: str) -> str:
    """How a file that is no image to us is told: by its ending, and what would read it."""
    stem, _, last = name.rpartition(".")
    suffix = f".{last.lower()}" if stem and last else ""
    if suffix in HEIC:
        return f"{suffix} (pip install 'depthjepa[heic]' reads them)"
    if suffix in (".avif", ".jp2"):
        return f"{suffix} (this build of Pillow does not read them)"
    return suffix or "without an ending"


def in_words(ignored: Mapping[str, int], most: int = 8) -> str:
    """What was passed over, the most frequent first: `12 .heic, 3 .txt`; empty for nothing."""
    ranked = sorted(ignored.items(), key=lambda each: (-each[1], each[0]))
    rest = sum(count for _, count in ranked[most:])
    return ", ".join([f"{count} {what}" for what, count in ranked[:most]] + [f"{rest} more"] * bool(rest))


SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_folders(root: Path) -> dict[str, str]:
    """The folders of `root` that are called as splits are, in any case: `{"train": "train", "val": "Valid"}`.

    Raises `BadInput` where two are called as one split, or `root` cannot be listed.
    """
    found: dict[str, str] = {}
    for name in sub_folders(root, [word for words in SPLIT_WORDS.values() for word in words]):
        for split, words in SPLIT_WORDS.items():
            if name.lower() in words and found.setdefault(split, name) != name:
                raise BadInput(f"{root} holds both {found[split]}/ and {name}/: join them, or rename one")
    return found


def beside_splits(root: Path, places: Mapping[str, str]) -> dict[str, int]:
    """What lies beside the folders of training and validation data and is not read; told of training data alone."""
    others = [name for name in sub_folders(root) if name not in (places["train"], places.get("val"))]
    found = {f"{name}/ beside {places['train']}/": 1 for name in others}
    if loose := loose_images(root):
        found[f"images right in {root.name}/"] = len(loose)
    return found


def sub_folders(folder: Path, called: Collection[str] | None = None) -> list[str]:
    """Sorted names of the folders right below `folder`, without hidden ones and those that systems leave.

    `called`: only those whose names are among these, in small letters. Raises `BadInput` where it cannot be listed.
    """
    found = _right_in(folder, "folder", lambda name: called is None or name.lower() in called)
    return [name for name in found if name.lower() not in LEFT_BY_SYSTEMS]


def loose_images(folder: Path) -> list[str]:
    """Sorted names of the images right in `folder`; raises `BadInput` where it cannot be listed."""
    return loose_files(folder, SUFFIXES)


def loose_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names of the files right in `folder` with these endings, which are in small letters, but hidden ones.

    Raises `BadInput` where it cannot be listed.
    """
    return _right_in(folder, "file", lambda name: name.lower().endswith(suffixes))


def _right_in(folder: Path, kind: Literal["folder", "file"], wanted: Callable[[str], bool]) -> list[str]:
    _, entries = entries_of(folder)
    own = entries.folders if kind == "folder" else entries.files
    found = [name for name in names_in(own) if wanted(name)]
    found += [name for name in names_in(entries.links) if wanted(name) and _leads_to(f"{folder}/{name}") == kind]
    return sorted(name for name in found if name[0] != ".")


@dataclass(frozen=True, slots=True)
class _Visible:
    """What a folder holds, by what it is or leads to now, and how much of it is hidden."""

    files: list[str]  # broken links too: an image that then cannot be read is told
    folders: list[str]
    linked: list[str]  # links to folders
    others: list[str]
    hidden: int


def _visible(place: Path, entries: Entries) -> _Visible:
    every = [names_in(joined) for joined in entries]
    files, folders, links, others = ([name for name in names if name[0] != "."] for names in every)
    hidden = sum(map(len, every)) - sum(map(len, (files, folders, links, others)))
    linked: list[str] = []
    for name in links:
        {"file": files, "folder": linked, "other": others}[_leads_to(f"{place}/{name}")].append(name)
    return _Visible(files, folders, linked, others, hidden)


def _leads_to(link: str) -> Literal["file", "folder", "other"]:
    try:
        mode = os.stat(link).st_mode  # noqa: PTH116
    except OSError:  # it is broken, or one of a circle
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def packed(names: Iterable[str]) -> np.ndarray:
    """Put file names in one array of bytes: workers share it, where a list would be copied page by page."""
    several = list(names)
    found = os.fsencode("\0".join(several)).split(b"\0")  # at once: they may be millions
    if len(found) != len(several):  # there are none, or a tar has a name with that sign in it
        found = [os.fsencode(name) for name in several]
    return np.array(found, dtype=np.bytes_)


def unpacked(names: np.ndarray) -> list[str]:
    """The file names that `packed` put together."""
    return os.fsdecode(b"\0".join(names.tolist())).split("\0") if len(names) else []
