"""The index of a place of shards: made once, kept, and checked against what lies there at each start.

It is one file of arrays, `shards.index.npz`: beside the shards where `depthjepa prepare index` wrote it, else in the
user's cache folder. A shard whose name, size and tag (see `place.Shard`) are those of the index is not looked at again;
any other is read anew. An index that came to its place together with the shards, as by an upload, has tags of where it
was made: each shard of it is then checked once, by the header of its last image.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthjepa.cache_folder import cache_folder
from depthjepa.data.pairing import DEPTH, LABELS
from depthjepa.data.shards.members import MAP_END, READABLE, Maps, Samples, joined, scanned
from depthjepa.data.shards.place import Piece, Place, Shard
from depthjepa.faults import BadInput
from depthjepa.logbook import whole_path
from depthjepa.progress import track

NAME = "shards.index.npz"
FORMAT = 2
KEPT_FROM = 1000  # samples of a folder; fewer are indexed anew in less than a tenth of a second
THREADS = 8  # shards that are indexed at a time, where they have to be fetched
SAVE_EVERY = 60.0  # seconds after which what is indexed is kept, although others are to follow


@dataclass(frozen=True, slots=True)
class One:
    """The samples of one shard, and what was passed over in it."""

    samples: Samples
    ignored: Counter[str]


Known = Mapping[Shard, One]


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where the samples of several shards are."""

    base: str  # what the names of the shards are below, for messages
    shards: tuple[Shard, ...]
    samples: Samples
    ignored: Mapping[str, int]  # members that are not read, in words

    def member(self, index: int) -> str:
        """SHARD:MEMBER, for messages."""
        shard = self.shards[self.samples.places[index, 0]].name
        return f"{self.base}/{shard}:{self.samples.names[index].decode(errors='surrogateescape')}"


@functools.lru_cache(maxsize=8)
def index_of(place: Place, shards: tuple[Shard, ...]) -> ShardIndex:
    """Index shards, or find what is known of them; it stays for as long as they are as they were.

    Raises `BadInput` for what `members.scanned` refuses, and where only some images have a label, depth or a label map.
    """
    known = indexed(place, shards)
    ignored = sum((known[shard].ignored for shard in shards), Counter[str]())
    index = ShardIndex(place.base, shards, joined([known[shard].samples for shard in shards]), ignored)
    there = {"label": (index.samples.labels >= 0, ".cls")}
    if (maps := index.samples.maps) is not None:
        depth = f".{READABLE[0]} (or another format of depth)"
        there |= {DEPTH.one: (maps.depths[:, 0] > 0, depth), LABELS.one: (maps.label_maps[:, 0] > 0, f".{MAP_END}")}
    for what, (has, member) in there.items():
        if has.any() and not has.all():
            without = index.member(int(has.argmin()))
            raise BadInput(f"{without} has no {what}, but other images have: give all of them a {member}, or none")
    return index


def indexed(place: Place, shards: Sequence[Shard]) -> Known:
    """What is in each of these shards: as it is known, else as it is read now, and then kept."""
    kept = cache_folder() / "indexes" / f"{hashlib.blake2b(place.base.encode(), digest_size=12).hexdigest()}.npz"
    known = _read(kept.read_bytes()) if kept.is_file() else {}
    if set(shards) <= known.keys():
        return known
    with _alone(kept):
        known = _read(kept.read_bytes()) if kept.is_file() else {}  # another process may have been at it
        known = _beside(place, shards) | known
        left = [shard for shard in shards if shard not in known]
        since = time.monotonic()
        for shard, one in track(_scanned(place, left), f"indexing shards of {place.name}", len(left)):
            known[shard] = one
            if time.monotonic() - since > SAVE_EVERY:
                _keep(kept, known, place)
                since = time.monotonic()
        _keep(kept, known, place)
    return known


def _scanned(place: Place, shards: Sequence[Shard]) -> Iterator[tuple[Shard, One]]:
    """Each shard with what is in it; several at a time where that is waiting and not work."""

    def scan(shard: Shard) -> One:
        with place.open(shard) as file:
            return One(*scanned(file, f"{place.base}/{shard.name}"))

    with ThreadPoolExecutor(1 if place.window_bytes is None else THREADS) as threads:
        try:
            yield from zip(shards, threads.map(scan, shards), strict=True)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def to_bytes(known: Known) -> bytes:
    """The file of an index."""
    counts = [len(one.samples.labels) for one in known.values()]
    told = {
        "format": FORMAT,
        "tars": [[*shard, count] for shard, count in zip(known, counts, strict=True)],
        "ignored": [one.ignored for one in known.values()],
    }
    content = io.BytesIO()
    names, places, labels, maps = joined([one.samples for one in known.values()])
    arrays = {"names": names, "places": places, "labels": labels} | ({} if maps is None else maps._asdict())
    np.savez(content, allow_pickle=False, about=np.array(json.dumps(told)), **arrays)
    return content.getvalue()


def _read(content: bytes) -> dict[Shard, One]:
    """What an index says; nothing where it is damaged or of another version: then it is made anew."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            told = json.loads(str(stored["about"]))
            if told["format"] != FORMAT:
                return {}
            maps = Maps(*(stored[name] for name in Maps._fields)) if Maps._fields[0] in stored else None
            samples = Samples(stored["names"], stored["places"], stored["labels"], maps)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return {}
    ends = np.cumsum([count for *_, count in told["tars"]])
    return {
        Shard(name, size, tag): One(samples.take(slice(end - count, end)), Counter(ignored))
        for (name, size, tag, count), end, ignored in zip(told["tars"], ends.tolist(), told["ignored"], strict=True)
    }


def _keep(file: Path, known: Known, place: Place) -> None:
    """Write the index, where it is worth it; a cache folder that cannot be written to is no fault."""
    if place.window_bytes is None and sum(len(one.samples.labels) for one in known.values()) < KEPT_FROM:
        return
    newest = {shard.name: shard for shard in known}  # what was there before is forgotten
    content = to_bytes({shard: known[shard] for shard in newest.values()})
    with contextlib.suppress(BadInput), whole_path(file, shared=True) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process of this machine at a time indexes a place, so that the others find what it has found."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    except OSError:  # see `_keep`
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _beside(place: Place, shards: Sequence[Shard]) -> dict[Shard, One]:
    """What the index beside the shards says of those that are there now."""
    content = place.content(NAME)
    if content is None:
        return {}
    told = _read(content)
    found = {shard: told[shard] for shard in shards if shard in told}
    by_size = {(shard.name, shard.size): one for shard, one in told.items()}
    other = [shard for shard in shards if shard not in told and (shard.name, shard.size) in by_size]
    with ThreadPoolExecutor(THREADS) as threads:
        same = threads.map(lambda shard: _has_its_end(place, shard, by_size[shard.name, shard.size].samples), other)
        found |= {shard: by_size[shard.name, shard.size] for shard, is_same in zip(other, same, strict=True) if is_same}
    return found


def _has_its_end(place: Place, shard: Shard, samples: Samples) -> bool:
    """Whether the last image of a shard is where it is told to be: the block before its bytes is its header."""
    _, first, size = samples.places[samples.places[:, 1].argmax()].tolist()
    block = place.read(shard, first - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE, Piece(first - tarfile.BLOCKSIZE, 0))
    try:
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size == size)
    except tarfile.HeaderError:
        return False
