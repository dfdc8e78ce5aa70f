"""Pieces of shards that lie elsewhere: neighbouring samples are fetched together, and kept on this machine's disk.

A piece is a file in a folder, whole or absent, that all processes of the machine share; its name says which bytes of
which shard it is. Those that were not used for longest go when all together exceed a bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from depthjepa.data.shards.members import Samples
from depthjepa.data.shards.place import Piece, Shard, read_at
from depthjepa.faults import OutOfReach, RunStopped
from depthjepa.logbook import whole_path

BYTES = 16 << 20  # of a piece, as far as samples are divided so: one request for it takes as long as 20 for nothing
SLACK = 64  # share of the bound that is made room for at once, so that not every fetch has to look for the oldest
TOUCH_EVERY = 30.0  # seconds after which a process says again that it uses a piece


@dataclass(frozen=True, slots=True)
class Pieces:
    """How samples are divided into pieces: as arrays that worker processes share."""

    first: Int64[ndarray, " pieces"]  # byte of its shard
    length: Int64[ndarray, " pieces"]
    of_sample: Int64[ndarray, " images"]

    def piece(self, index: int) -> Piece:
        """The piece that sample `index` is in."""
        number = self.of_sample[index]
        return Piece(int(self.first[number]), int(self.length[number]))


def divided(samples: Samples) -> Pieces:
    """Divide samples into runs of neighbours: those that begin within the same `BYTES` of a shard, with all members."""
    first, last = samples.extents()
    cell = first // BYTES
    _, of_sample = np.unique(samples.places[:, 0] * (cell.max() + 1) + cell, return_inverse=True)
    begin = np.full(of_sample.max() + 1, np.iinfo(np.int64).max)
    end = np.zeros_like(begin)
    np.minimum.at(begin, of_sample, first)
    np.maximum.at(end, of_sample, last)
    return Pieces(begin, end - begin, of_sample.astype(np.int64))


def each_alone(samples: Samples) -> Pieces:
    """Every sample as a piece of its own."""
    first, end = samples.extents()
    return Pieces(first, end - first, np.arange(len(first)))


_NAME = re.compile(r"\d+-(\d+)(\.partial)?")  # of a piece, and of one that is being written, or was when it was killed
_touched: dict[Path, float] = {}  # when this process said last that it uses a piece


@dataclass(frozen=True, slots=True)
class PieceCache:
    """A folder of pieces, of at most `most_bytes` together as long as one piece is smaller than that."""

    folder: Path
    most_bytes: int

    def path(self, address: str, shard: Shard, piece: Piece) -> Path:
        """Where a piece is kept; other content of a shard's name has another folder."""
        told = repr((address, *shard)).encode(errors="surrogateescape")
        return self.folder / hashlib.blake2b(told, digest_size=12).hexdigest() / f"{piece.first}-{piece.length}"

    def read(
        self, address: str, shard: Shard, piece: Piece, first: int, length: int, fetch: Callable[[], bytes]
    ) -> bytes:
        """Some bytes of a piece, which `fetch` gets where it is not there; by others it may be removed at any time."""
        path = self.path(address, shard, piece)
        while True:
            try:
                content = read_at(path, first - piece.first, length)
            except FileNotFoundError:
                self._get(path, fetch)
                continue
            if (now := time.monotonic()) - _touched.get(path, -TOUCH_EVERY) >= TOUCH_EVERY:
                _touched[path] = now
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)
            return content

    def _get(self, path: Path, fetch: Callable[[], bytes]) -> None:
        """Fetch a piece, once for all processes of this machine: who comes second waits for the first."""
        with _waiting(path.with_name(f"{path.name}.lock")):
            if path.exists():
                return
            content = fetch()
            self._make_room(len(content))
            while True:
                try:
                    with whole_path(path) as partial:
                        partial.write_bytes(content)
                    return
                except RunStopped as fault:  # the disk is full before the bound is reached
                    if not self._make_room(len(content), whatever_the_bound=True):
                        raise OutOfReach(
                            f"there is no room for {len(content) / 1e6:.0f} MB in {self.folder}: make some, or name "
                            f"another folder (data.cache)"
                        ) from fault

    def _make_room(self, needed: int, *, whatever_the_bound: bool = False) -> bool:
        """Remove pieces, those that were not used for longest first, until another one of `needed` bytes fits.

        Returns whether there was any to remove.
        """
        there: list[tuple[int, str]] = []  # with their bytes, which names tell: a large cache holds 100,000 of them
        for folder in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for entry in os.scandir(folder):
                    if (found := _NAME.fullmatch(entry.name)) is not None:
                        there.append((int(found[1]), entry.path))
        excess = sum(size for size, _ in there) + needed - self.most_bytes
        if whatever_the_bound:
            excess = needed
        elif excess > 0:
            excess += self.most_bytes // SLACK
        removed = False
        for size, path in sorted(there, key=lambda each: _last_use(each[1])) if excess > 0 else ():
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess, removed = excess - size, True
        return removed


def _last_use(path: str) -> float:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116
    except FileNotFoundError:  # another process has removed it
        return 0.0


@contextlib.contextmanager
def _waiting(lock: Path) -> Iterator[None]:
    """Hold a lock file that goes away again; the operating system gives it back where a process is killed."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), lock):
                continue  # another one had it, and has removed it since
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False
