"""What folders hold, kept from one start to the next, so that a large folder is listed once.

What is kept is checked, not trusted. The names in a folder are used again only if it is the same folder (device, inode)
with the same times of its last changes, and had not changed for two seconds when it was listed: a change within one
tick of the clock would not show. Any other folder is listed anew. A link may come to lead elsewhere without a change of
the folder that it is in: what it leads to is asked each time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from depthjepa.cache_folder import cache_folder
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import whole_path

Identity = tuple[int, int]  # device and number of a real folder
Stamp = tuple[int, int, int, int]  # the same, and when its content [ns] and the folder itself [ns] were changed

FORM = b"folders 1"  # of the files; whatever has another one is made anew
DIGEST = 16  # bytes
LEAST = 1000  # names; fewer are listed in no time
SETTLED = 2_000_000_000  # ns; the coarsest clock of file systems
# File systems that may show other files in a folder whose times are what they were: those of programs (buckets, ssh),
# of cards and sticks that other systems write to, and of images that are made as a whole, with any times.
TIMELESS = ("fuse", "vfat", "msdos", "exfat", "squashfs", "erofs", "cramfs", "iso9660", "udf")
MOUNTS = Path("/proc/self/mountinfo")


class Entries(NamedTuple):
    """The names in a folder by what they are, sorted, and joined by the one sign that no name has (see `names_in`)."""

    files: str
    folders: str
    links: str
    others: str


@dataclass(slots=True)
class _Kept:
    """What is known below a folder, by the paths of the folders."""

    top: Path
    folders: dict[str, tuple[Stamp, Entries]]
    changed: bool = False


_at_hand: ContextVar[tuple[_Kept, ...]] = ContextVar("_at_hand", default=())


def names_in(joined: str) -> list[str]:
    """The names that `Entries` holds joined."""
    return joined.split("/") if joined else []


def entries_of(folder: Path) -> tuple[Identity, Entries]:
    """Which real folder this is, and what it holds; raises `BadInput` where it cannot be listed."""
    stamp, path = _stamp(folder), str(folder)
    for each in _at_hand.get():
        if (before := each.folders.get(path)) is not None and before[0] == stamp:
            return stamp[:2], before[1]
    settled = time.time_ns() - max(stamp[2:]) >= SETTLED  # before it is listed
    entries = _listed(folder)
    for each in _at_hand.get():
        if settled and folder.is_relative_to(each.top):
            each.folders[path] = stamp, entries
            each.changed = True
    return stamp[:2], entries


def real_folder(folder: Path) -> Identity:
    """What tells a real folder from others, by whatever path; raises `BadInput` where it cannot be looked at."""
    return _stamp(folder)[:2]


def _stamp(folder: Path) -> Stamp:
    try:
        status = os.stat(folder)  # noqa: PTH116 (a third of the time)
    except OSError as fault:
        raise _unlisted(folder, fault) from fault
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _listed(folder: Path) -> Entries:
    found: dict[str, list[str]] = {kind: [] for kind in Entries._fields}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found[_kind(entry)].append(entry.name)
    except OSError as fault:
        raise _unlisted(folder, fault) from fault
    return Entries(**{kind: "/".join(sorted(names)) for kind, names in found.items()})


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file(follow_symlinks=False):
            return "files"
        if entry.is_dir(follow_symlinks=False):
            return "folders"
        return "links" if entry.is_symlink() else "others"
    except OSError:  # it may not be looked at: an image that then cannot be read is told
        return "files"


def _unlisted(folder: Path, fault: OSError) -> BadInput:
    return BadInput(f"{folder} cannot be listed: {fault.strerror}")


@contextlib.contextmanager
def kept(*tops: Path) -> Iterator[None]:
    """Inside the block, folders below `tops` that are known and have not changed are not listed anew.

    At its end what was found is kept in the user's cache folder; where that cannot be written, there is a warning.
    """
    around = _at_hand.get()
    own = [
        _Kept(top, _read(top))
        for top in dict.fromkeys(tops)
        if not any(top.is_relative_to(each.top) for each in around)
    ]
    token = _at_hand.set((*around, *own))
    try:
        yield
    finally:
        _at_hand.reset(token)
    if (os.environ.get("LOCAL_RANK") or "0") == "0":  # the processes of a run on one machine find the same
        for each in own:
            if each.changed:
                _write(each)


def _read(top: Path) -> dict[str, tuple[Stamp, Entries]]:
    """What was kept of a folder; nothing where there is none, or what is there is damaged: it is written anew then."""
    file = _file_of(top)
    try:
        stored = b"" if file is None else file.read_bytes()
    except OSError:  # most often there is none yet; whatever else it is, writing it tells
        return {}
    if stored[:DIGEST] != _digest(stored[DIGEST:]):
        return {}
    fields = os.fsdecode(zlib.decompress(stored[DIGEST:])).split("\0")
    base = "" if top == Path() else str(top)
    known = {}
    for first in range(0, len(fields), 6):
        name, numbers, *entries = fields[first : first + 6]
        device, inode, content, itself = map(int, numbers.split())
        path = os.path.join(base, name) if name else str(top)  # noqa: PTH118
        known[path] = (device, inode, content, itself), Entries(*entries)
    return known


def _write(found: _Kept) -> None:
    timeless = _timeless_devices()
    below = ((PurePath(path).relative_to(found.top), known) for path, known in found.folders.items())
    known = {
        "" if place == PurePath() else place.as_posix(): (stamp, entries)
        for place, (stamp, entries) in below
        if stamp[0] not in timeless
    }
    known = _that_are_there(known)
    if sum(joined.count("/") + bool(joined) for _, entries in known.values() for joined in entries) < LEAST:
        return
    if (file := _file_of(found.top)) is None:
        return
    fields = (field for name, (stamp, names) in known.items() for field in (name, " ".join(map(str, stamp)), *names))
    content = zlib.compress(os.fsencode("\0".join(fields)), 1)
    try:
        with whole_path(file, shared=True) as partial:
            partial.write_bytes(_digest(content) + content)
    except (BadInput, RunStopped, OSError) as fault:
        reason = fault if isinstance(fault, OSError) else fault.__cause__
        _tell(f"{file.parent} cannot be written ({getattr(reason, 'strerror', reason)})")


def _that_are_there(known: Mapping[str, tuple[Stamp, Entries]]) -> dict[str, tuple[Stamp, Entries]]:
    """Without the folders whose parents, or what is above them, no longer hold them."""
    held = {name: {*names_in(entries.folders), *names_in(entries.links)} for name, (_, entries) in known.items()}

    def is_there(name: str) -> bool:
        parts = name.split("/") if name else []
        return all(part in held.get("/".join(parts[:depth]), (part,)) for depth, part in enumerate(parts))

    return {name: each for name, each in known.items() if is_there(name)}


def _file_of(top: Path) -> Path | None:
    """Where what is known of a folder is kept, told by its real path; None where the user has no cache folder."""
    try:
        place = cache_folder()
    except BadInput as fault:
        _tell(str(fault))
        return None
    name = hashlib.blake2b(os.fsencode(os.path.realpath(top)), digest_size=DIGEST).hexdigest()
    return place / "listings" / name


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST, key=FORM).digest()


def _timeless_devices() -> set[int]:
    """Devices whose folders cannot be known by their times, where the system lists what is mounted."""
    if not MOUNTS.exists():
        return set()
    found = set()
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        mounted, _, what = line.partition(" - ")
        if what.startswith(TIMELESS):
            found.add(os.makedev(*map(int, mounted.split()[2].split(":"))))
    return found


@functools.cache
def _tell(fault: str) -> None:
    """Warn once."""
    said = f"{fault}: large folders are listed anew at each start, unless DEPTHJEPA_CACHE names a folder for that"
    warnings.warn(said, stacklevel=2)
