"""What data hold, cheaply told: so that a run that goes on, or reads a cache, meets the images that it began with.

Images are known by their names below the root and by the bytes of their files; no file is opened, but for depth in
formats without compression, of which some bytes are read. Where the root lies does not count: data that are moved as a
whole are the same. A file that was replaced by one of the very same size is not noticed.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from depthjepa.data.images import Split
from depthjepa.data.listing import packed
from depthjepa.data.order import Mixture
from depthjepa.data.pairing import some_of
from depthjepa.data.samples import Source, Stamped
from depthjepa.faults import BadInput
from depthjepa.logbook import read_object, to_json, whole_path, write_whole

FILE, NAMES = "data.json", "data.npz"
KEPT = 100_000  # images of a source, up to which all names are kept: about 1 MB
_TOGETHER, _THREADS = 1024, 16  # files that a thread asks for at a time
_PIECES, PIECE = 5, 4096  # of a file that is told by its bytes, spread evenly, and bytes of each
_WAITING = 5e-5  # seconds a file, above which a file system is another machine's

_known: weakref.WeakKeyDictionary[Stamped, Int64[np.ndarray, "images numbers"]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Contents:
    """What a source holds: how many images, and a checksum of what is known of all.

    Of up to `KEPT` images their names and stamps as well, so that those that differ can be named.
    """

    images: int
    digest: str
    names: Shaped[np.ndarray, " images"] | None = field(default=None, compare=False)
    stamps: Int64[np.ndarray, "images numbers"] | None = field(default=None, compare=False)


def stamps_of(source: Source) -> Int64[np.ndarray, "images numbers"]:
    """Numbers that tell the images of a source from others of their names, those of the image itself first.

    All 0 where a name says everything (rendered scenes). What was found is kept as long as the source is.
    """
    if isinstance(source, Mixture):
        parts = [stamps_of(each) for each in source.sources]
        widest = max(part.shape[1] for part in parts)
        return np.concatenate([np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in parts])
    if not isinstance(source, Stamped):
        return np.zeros((len(source), 1), dtype=np.int64)
    if source not in _known:
        _known[source] = source.stamps()
    return _known[source]


def contents_of(sources: Mapping[Split, Source]) -> dict[str, Contents]:
    """What named sources hold; of several roots each by itself, since the name of a root does not count."""
    found = {}
    for name, source in sources.items():
        parts = source.sources if isinstance(source, Mixture) else (source,)
        weights = source.weights if isinstance(source, Mixture) and source.weights else [0.0] * len(parts)
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True), 1):
            found[name if len(parts) == 1 else f"{name} {number}"] = _contents(part, weight)
    return found


def _contents(source: Source, weight: float) -> Contents:
    stamps, images = stamps_of(source), len(source)
    digest = hashlib.blake2b(repr((source.classes, weight)).encode(errors="surrogateescape"), digest_size=16)
    for first in range(0, images, _TOGETHER):
        names = map(source.name_of, range(first, min(first + _TOGETHER, images)))
        digest.update(os.fsencode("\0".join(names)) + b"\0")
    digest.update(np.ascontiguousarray(stamps).astype("<i8").tobytes())
    if images > KEPT:
        return Contents(images, digest.hexdigest())
    return Contents(images, digest.hexdigest(), packed(map(source.name_of, range(images))), stamps)


def file_sizes(root: Path, names: Sequence[str]) -> Int64[np.ndarray, " files"]:
    """Bytes of files below a folder; -1 for one that is gone.

    A local disk is asked one by one, which takes 4 microseconds a file; one that lets us wait, by several threads.
    """
    return _asked(root, names, _sizes)


def file_marks(root: Path, names: Sequence[str]) -> Int64[np.ndarray, " files"]:
    """Numbers that tell files below a folder by their size and by pieces of them; -1 for one that is gone.

    For formats without compression, whose files are all of one size.
    """
    return _asked(root, names, lambda paths: [_mark(path) for path in paths])


def _asked(root: Path, names: Sequence[str], ask: Callable[[list[str]], list[int]]) -> Int64[np.ndarray, " files"]:
    below = f"{root}/"

    def sizes(first: int) -> list[int]:
        return ask([below + name for name in names[first : first + _TOGETHER]])

    begin = time.perf_counter()
    found = sizes(0)
    waits = time.perf_counter() - begin > _WAITING * len(found)
    with ThreadPoolExecutor(_THREADS if waits else 1) as threads:
        found += [size for part in threads.map(sizes, range(_TOGETHER, len(names), _TOGETHER)) for size in part]
    return np.array(found, dtype=np.int64)


def _sizes(paths: list[str]) -> list[int]:
    try:
        return [os.stat(path).st_size for path in paths]  # noqa: PTH116
    except OSError:  # one of them is gone
        return [size for path in paths for size in (_sizes([path]) if len(paths) > 1 else [-1])]


def _mark(path: str) -> int:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return mark_of(os.fstat(file.fileno()).st_size, lambda place: os.pread(file.fileno(), PIECE, place))
    except OSError:
        return -1


def mark_of(size: int, piece_at: Callable[[int], bytes | memoryview]) -> int:
    """A number that tells a content of this size [byte] by it and by pieces: `piece_at` a place gives `PIECE` bytes."""
    mark = zlib.crc32(str(size).encode())
    for part in range(_PIECES):
        mark = zlib.crc32(piece_at(max(0, size - PIECE) * part // (_PIECES - 1)), mark)
    return mark


def write_contents(folder: Path, contents: Mapping[str, Contents]) -> None:
    """Write `data.json`, after the names in `data.npz`."""
    arrays: dict[str, np.ndarray] = {}
    for each in contents.values():
        if each.names is not None and each.stamps is not None:
            arrays |= {f"names-{each.digest}": each.names, f"stamps-{each.digest}": each.stamps}
    with whole_path(folder / NAMES, shared=True) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    content = {name: {"images": each.images, "digest": each.digest} for name, each in contents.items()}
    write_whole(folder / FILE, to_json(content))


def read_contents(folder: Path) -> dict[str, Contents] | None:
    """What the data of a folder were, without names; None where it does not say. Raises `BadInput` for damaged ones."""
    if not (folder / FILE).is_file():
        return None
    try:
        return {name: Contents(**each) for name, each in read_object(folder / FILE).items()}
    except TypeError as fault:
        raise BadInput(f"{folder / FILE} is damaged: it does not say what the data were") from fault


def changes(folder: Path, now: Mapping[str, Contents]) -> str | None:
    """How data differ from those that a folder began with, in words; empty if not at all, None where it is not known.

    "train: 3 added (a.jpg, b.jpg, c.jpg), 1 removed (d.jpg)".
    """
    before = read_contents(folder)
    if before is None:
        return None
    differing = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    return "; ".join(f"{name}: {_difference(folder, before.get(name), now.get(name))}" for name in differing)


def refuse_changed(folder: Path, now: Mapping[str, Contents], say: Callable[[str], None]) -> None:
    """Raise `BadInput` where what is in a folder was begun with other data; say where that is not known."""
    changed = changes(folder, now)
    if changed is None:
        say(f"which data {folder} was begun with is not known: {FILE} is not there")
    elif changed:
        raise BadInput(
            f"{folder} was begun with other data: {changed}; bring them back as they were, or choose another --out"
        )


def _difference(folder: Path, before: Contents | None, now: Contents | None) -> str:
    if before is None or now is None:
        found = before or now
        assert found is not None
        return f"{found.images} {'no longer there' if now is None else 'where there was nothing'}"
    names, stamps = _kept(folder, before)
    if names is None or stamps is None or now.names is None or now.stamps is None:
        return "not the same" + f": {before.images} before and {now.images} now" * (before.images != now.images)
    old, new = dict(zip(names.tolist(), stamps, strict=True)), dict(zip(now.names.tolist(), now.stamps, strict=True))
    groups = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and not np.array_equal(old[name], new[name])],
    }
    changes = [
        f"{len(group)} {what} ({some_of([os.fsdecode(name) for name in group])})"
        for what, group in groups.items()
        if group
    ]
    return ", ".join(changes) or "the same images in another order, or with other classes or weights"


def _kept(folder: Path, contents: Contents) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not (folder / NAMES).is_file():
        return None, None
    with np.load(folder / NAMES) as stored:
        if f"names-{contents.digest}" not in stored:
            return None, None
        return stored[f"names-{contents.digest}"], stored[f"stamps-{contents.digest}"]
