"""Shards at an address (`s3://`, `https://`, whatever fsspec speaks): byte ranges of them, fetched through a cache.

fsspec and what it needs for an address are asked for when an address is read. Its libraries find endpoints and
credentials as their own tools do (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `FSSPEC_S3_ANON=true`, ...).
"""

from __future__ import annotations

import functools
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from depthjepa.data.images import fault_line
from depthjepa.data.shards.pieces import BYTES, PieceCache
from depthjepa.data.shards.place import FOLDERS, TAR, Piece, Shard, address_base
from depthjepa.faults import BadInput, OutOfReach

T = TypeVar("T")

PATIENCE = 300.0  # seconds for which what does not answer is asked again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries, doubled each time
ASKED_TOGETHER = 32  # shards that are looked for by their names at a time

# Faults of these packages, beside the operating system's, are those of a network.
_NETWORK = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "adlfs", "huggingface_hub", "requests", "httpx", "urllib3")
_REFUSED, _BUSY = (401, 403), (408, 425, 429)  # answers of web servers
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")


@dataclass(frozen=True, slots=True)
class Address:
    """Shards at an address: of a folder, of one tar, or of several by their numbers (`.../train-{000..099}.tar`)."""

    address: str
    cache: PieceCache
    window_bytes: int

    @property
    def name(self) -> str:
        return self.address

    @property
    def base(self) -> str:
        return address_base(self.address)

    def shards(self) -> tuple[Shard, ...]:
        return listed(self.address)

    def content(self, name: str) -> bytes | None:
        return _content(f"{self.base}/{name}")

    def put(self, name: str, content: bytes) -> str:
        address = f"{self.base}/{name}"
        try:
            _tried(lambda fs, path: fs.pipe_file(path, content), address)
        except (NotImplementedError, _NotThere) as fault:
            raise BadInput(
                f"{address} cannot be written ({_line(fault)}): write the index into a file (--out) and put it there"
            ) from fault
        return address

    def open(self, shard: Shard) -> io.BytesIO:
        return _Stream(lambda first, length: self._fetched(shard, first, length), shard.size)

    def holds(self, shard: Shard, piece: Piece) -> bool:
        return self.cache.path(self.base, shard, piece).exists()

    def read(self, shard: Shard, first: int, length: int, piece: Piece) -> bytes:
        if not piece.length:
            return self._fetched(shard, first, length)
        return self.cache.read(
            self.base, shard, piece, first, length, lambda: self._fetched(shard, piece.first, piece.length)
        )

    def _fetched(self, shard: Shard, first: int, length: int) -> bytes:
        """Some bytes of a shard, from where it lies.

        Raises `BadInput` where the shard is shorter than it was, and for a server that gives no ranges.
        """
        address = f"{self.base}/{shard.name}"
        try:
            content: bytes = _tried(lambda fs, path: fs.cat_file(path, start=first, end=first + length), address)
        except _NotThere as fault:
            raise BadInput(f"{address} is gone, or shorter than it was: {fault_line(fault)}") from fault
        if len(content) > length:
            raise BadInput(
                f"{address}: its server gives no ranges of bytes, only whole files: copy the shards to a disk"
            )
        if len(content) < length:
            raise BadInput(
                f"{address} is cut short: bytes {first} to {first + length} were asked for and {len(content)} came; it "
                f"had {shard.size} when it was looked at"
            )
        return content


class _Stream(io.BytesIO):
    """A shard that is read from its beginning to its end: blocks of it, one at a time, as far as they are wanted."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._place = fetch, size, 0
        self._first, self._block = 0, b""

    def seek(self, place: int, whence: int = 0, /) -> int:
        assert whence == 0, "a tar is read by places from its beginning"
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def read(self, length: int | None = -1, /) -> bytes:
        end = self._size if length is None or length < 0 else min(self._place + length, self._size)
        parts = []
        while self._place < end:
            if not self._first <= self._place < self._first + len(self._block):
                self._first = self._place
                self._block = self._fetch(self._place, min(BYTES, self._size - self._place))
            part = self._block[self._place - self._first : end - self._first]
            parts.append(part)
            self._place += len(part)
        return b"".join(parts)


@functools.lru_cache(maxsize=8)
def listed(address: str) -> tuple[Shard, ...]:
    """The shards at an address, by their names; a process lists it once. Raises `BadInput` where there are none."""
    _file_system(address)[0].invalidate_cache()
    base = address_base(address)
    told: dict[str, Mapping[str, Any] | None]
    if "{" in address or address.endswith(TAR):
        told = dict.fromkeys(_numbered(address))
    else:
        folders = [base, *(f"{base}/{word}" for word in FOLDERS)]
        told = {each: info for folder in folders for each, info in _tars(folder).items()}
        if not told:
            raise BadInput(
                f"data.root={address} lists no tar shards; name them, as in {base}/train-{{000..099}}.tar, where its "
                f"server gives no lists"
            )
    with ThreadPoolExecutor(ASKED_TOGETHER) as threads:  # lists of web servers have no lengths: each shard is asked for
        shards = list(threads.map(lambda each: _shard(each, base, told[each]), told))
    return tuple(sorted(shards, key=lambda shard: PurePosixPath(shard.name).parts))


def _numbered(address: str) -> Iterator[str]:
    """Addresses of which one with `{000..099}` speaks."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", address)
    if found is None:
        if "{" in address:
            raise BadInput(f"data.root={address}: braces hold two numbers, as in train-{{000..099}}.tar")
        yield address
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{address[: found.start()]}{number:0{len(first)}d}{address[found.end() :]}")


def _tars(address: str) -> dict[str, Mapping[str, Any] | None]:
    """The tars right at an address, with what a list tells of them; none where nothing is."""
    try:
        found = _tried(lambda fs, path: fs.ls(path, detail=True), address)
    except _NotThere:
        return {}
    files = ((PurePosixPath(each["name"]).name, each) for each in found if each["type"] == "file")
    return {f"{address}/{name}": each for name, each in files if name.endswith(TAR) and name[0] != "."}


def _shard(address: str, base: str, info: Mapping[str, Any] | None) -> Shard:
    """One shard by what is known of it, else by what its server tells; raises `BadInput` where it is not there."""
    if info is None or info.get("size") is None:
        try:
            info = _tried(lambda fs, path: fs.info(path), address)
        except _NotThere as fault:
            raise BadInput(f"data.root: there is no {address}: {fault_line(fault)}") from fault
    if info.get("size") is None:
        raise BadInput(f"{address}: its server does not tell how long it is (Content-Length): copy it to a disk")
    tags = (info.get(key) for key in ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "created"))
    return Shard(address.removeprefix(f"{base}/"), int(info["size"]), str(next((tag for tag in tags if tag), "")))


def _content(address: str) -> bytes | None:
    try:
        content: bytes = _tried(lambda fs, path: fs.cat_file(path), address)
    except (_NotThere, _Refused):  # without the right to list, S3 refuses what is not there; shards tell of wrong keys
        return None
    return content


class _NotThere(Exception):
    """Nothing lies at an address."""


class _Refused(BadInput):
    """Something lies at an address, or not: whoever asks may not know."""


def _file_system(address: str) -> tuple[Any, str]:
    """Who speaks the protocol of an address, and the address as it calls it; made once for each process by fsspec."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as fault:
        raise BadInput(f"{address} is read by fsspec ({fault_line(fault)}): pip install 'depthjepa[remote]'") from fault
    except ValueError as fault:
        raise BadInput(f"data.root={address}: {fault_line(fault)}") from fault


def _tried(ask: Callable[[Any, str], T], address: str) -> T:
    """Ask for something at an address, and again for `PATIENCE` where nobody answers or the answer is to come again.

    Raises `_NotThere`, `BadInput` where access is refused, and `OutOfReach` when the patience is at an end.
    """
    fs, path = _file_system(address)
    since, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return ask(fs, path)
        except Exception as fault:
            _refuse_lasting(fault, address)
            waited = time.monotonic() - since
            if waited + pause > PATIENCE:
                raise OutOfReach(
                    f"{address} could not be read for {waited:.0f} s, the last time because of {_line(fault)}"
                ) from fault
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _refuse_lasting(fault: Exception, address: str) -> None:
    """Raise what it means where asking again does not help; also what is no fault of a network."""
    status = getattr(fault, "status", None) or getattr(fault.__cause__, "status", None)
    if status is not None and 400 <= status < 500 and status not in (*_REFUSED, *_BUSY):
        raise _NotThere(_line(fault)) from fault
    if isinstance(fault, PermissionError) or status in _REFUSED or type(fault).__name__ in _NO_CREDENTIALS:
        raise _Refused(
            f"{address}: access is refused ({_line(fault)}); credentials are looked for where the tools of this "
            f"storage look for them"
        ) from fault
    # Of a web server that cannot be reached fsspec says that the file is not found.
    unreachable = type(fault.__cause__).__module__.startswith("aiohttp")
    if isinstance(fault, FileNotFoundError) and not unreachable:
        raise _NotThere(_line(fault)) from fault
    if not _of_network(fault):
        raise fault


def _of_network(fault: BaseException) -> bool:
    return isinstance(fault, OSError) or type(fault).__module__.partition(".")[0] in _NETWORK


def _line(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {fault_line(fault)}"
