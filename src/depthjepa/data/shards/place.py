"""Where tar shards lie: a folder of this machine, or one tar in it. `remote` has the places that are addresses."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

from depthjepa.data.images import Split
from depthjepa.data.listing import SPLIT_WORDS, loose_files
from depthjepa.logbook import whole_path

TAR = ".tar"
FOLDERS = (*SPLIT_WORDS["train"], *SPLIT_WORDS["val"])  # that may hold the shards of a split


def is_address(root: str) -> bool:
    """Whether a root is an address (`s3://`, `https://`) and no path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", root) is not None


def address_base(address: str) -> str:
    """What the names of the shards at an address are below; where it names them, that is what is before the names."""
    if "{" in address or address.endswith(TAR):
        return address.partition("{")[0].rpartition("/")[0]
    return address.rstrip("/")


class Shard(NamedTuple):
    """One tar: its name below the place, and what tells it from another of that name."""

    name: str
    size: int  # bytes
    tag: str  # when it was written, or what object storage calls its content


class Piece(NamedTuple):
    """Neighbouring bytes of a shard that are fetched together: the whole of some samples that follow one another."""

    first: int
    length: int


@runtime_checkable
class Place(Protocol):
    """Where shards lie. It can be handed to worker processes, and tells places apart by its value."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """What the user asked for, for messages."""
        ...

    @property
    def base(self) -> str:
        """The folder or address that names of shards are below, for messages."""
        ...

    @property
    def window_bytes(self) -> int | None:
        """Bytes that are shuffled among themselves; None: all of them."""
        ...

    def shards(self) -> tuple[Shard, ...]:
        """All tars right here, and in folders that are called as splits are, by their names."""
        ...

    def content(self, name: str) -> bytes | None:
        """A file beside the shards; None where it is not there."""
        ...

    def put(self, name: str, content: bytes) -> str:
        """Write a file beside the shards, whole; says where. Raises `BadInput` where nothing can be written."""
        ...

    def open(self, shard: Shard) -> io.FileIO | io.BytesIO:
        """A shard to be read from its beginning to its end, hardly ever back."""
        ...

    def holds(self, shard: Shard, piece: Piece) -> bool:
        """Whether a piece is at hand."""
        ...

    def read(self, shard: Shard, first: int, length: int, piece: Piece) -> bytes:
        """Some bytes of a shard; `piece` holds them. Raises `OSError` for a file that cannot be read any more."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """Shards of a folder, or a single tar."""

    path: Path

    window_bytes = None

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def base(self) -> str:
        return str(self._folder)

    @property
    def _folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def shards(self) -> tuple[Shard, ...]:
        places = [self.path, *(self.path / word for word in FOLDERS)]
        paths = [path for place in places for path in tars_in(place)] if self.path.is_dir() else [self.path]
        return tuple(self._shard(path) for path in sorted(paths))

    def _shard(self, path: Path) -> Shard:
        stat = path.stat()
        return Shard(path.relative_to(self._folder).as_posix(), stat.st_size, f"{stat.st_mtime_ns}")

    def content(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, content: bytes) -> str:
        with whole_path(self._folder / name) as partial:
            partial.write_bytes(content)
        return str(self._folder / name)

    def open(self, shard: Shard) -> io.FileIO:
        return (self._folder / shard.name).open("rb", buffering=0)

    def holds(self, shard: Shard, piece: Piece) -> bool:
        return True

    def read(self, shard: Shard, first: int, length: int, piece: Piece) -> bytes:
        """The file is opened for each: that costs 3 microseconds of some 200, and workers share no open files."""
        return read_at(self._folder / shard.name, first, length)


def read_at(path: Path, first: int, length: int) -> bytes:
    """Some bytes of a file."""
    opened = os.open(path, os.O_RDONLY)
    try:
        return os.pread(opened, length, first)
    finally:
        os.close(opened)


def tars_in(folder: Path) -> list[Path]:
    """The tars right in a folder."""
    names = loose_files(folder, (TAR,)) if folder.is_dir() else []
    return [path for name in names if name.endswith(TAR) and (path := folder / name).is_file()]


def of_split(shards: Sequence[Shard], split: Split) -> tuple[Shard, ...]:
    """The shards of a split, told by a word of their name or of their folder; all where no shard tells one."""
    by_split = {known: [each for each in shards if _tells(each.name, words)] for known, words in SPLIT_WORDS.items()}
    if any(by_split.values()):
        return tuple(by_split[split])
    return tuple(each for each in shards if "/" not in each.name)


def _tells(name: str, words: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parent.name in words
    return bool(set(words) & set(re.split(r"[-_.]", path.stem.lower())))
