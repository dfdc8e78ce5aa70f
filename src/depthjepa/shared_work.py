"""Work that many processes share without talking to each other: a piece that somebody does is claimed by a file.

A claim saves work, it guards nothing: a result is put in its place whole, the first one stays, and a second is as good.
So a claim may be taken from a process that is gone. While it works, a process renews the time of its claim's file; one
that has not been renewed for `STALE` seconds, by the clock of the file server, was left behind, and so was one of a
process of this machine that has ended. Whoever takes over errs at worst in doing what is done a second time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from depthjepa.faults import BadInput
from depthjepa.locks import Holder
from depthjepa.logbook import write_new, writing

SUFFIX = ".claim"
RENEWED = 30.0  # seconds after which a claim is renewed
STALE = 300.0  # seconds without that, after which it counts no more: far above what a file server keeps to itself

_LONGEST = 4096  # bytes of a claim
_GONE = (errno.ENOENT, errno.ESTALE)  # ESTALE: a network file system's word for a file that was open and is removed

Found = tuple[bytes, int]  # what a claim says, and when it was renewed [ns, of the file server]


@contextlib.contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Have a piece of work to oneself inside of the block: whether it is this process's, or somebody else's.

    The claim is `file`, whose folder is there. Raises what `logbook.writing` raises.
    """
    own, ended, mine = _this(), threading.Event(), True
    try:  # from here on: a signal may come anywhere, and what is claimed is given back
        mine = _taken(file, own)
        if mine:
            threading.Thread(target=_renew, args=(file, ended), daemon=True).start()
        yield mine
    finally:
        ended.set()
        if mine and (last := _read(file)) is not None and last[0] == own:
            file.unlink(missing_ok=True)


def refuse_shard(shard: tuple[int, int]) -> None:
    """Raise `BadInput` for a share (i, n) of some work that there is not: i is 0 to n - 1."""
    number, count = shard
    if not 0 <= number < count:
        raise BadInput(
            f"--shard {number}/{count}: the first of {count} parts is 0/{count}, the last {count - 1}/{count}"
        )


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder whose work is done: claims, and files that they were writing."""
    for file in [each for each in folder.iterdir() if each.name.endswith((SUFFIX, ".partial"))]:
        if (found := _read(file)) is not None and _left_behind(found, folder):
            file.unlink(missing_ok=True)


def _this() -> bytes:
    """What a claim of this process says: who has it, and a number that no other claim has."""
    claim = {"holder": asdict(Holder.this()), "processes": _processes(), "number": os.urandom(8).hex()}
    return json.dumps(claim).encode()


def _processes() -> str:
    """Which table the numbers of processes are of: containers of one machine have a table each."""
    table = Path("/proc/self/ns/pid")
    return str(table.readlink()) if table.is_symlink() else ""


def _taken(file: Path, own: bytes) -> bool:
    """Put this process's claim where there is none, or in the place of one that was left behind; whether it did.

    Many may find the same old one at once. Whoever is first to make a file that is named after it replaces it: the new
    claim has another name, so nobody takes it for the old one.
    """
    if (found := _read(file)) is None:
        return write_new(file, own)
    if not _left_behind(found, file.parent):
        return False
    name = hashlib.blake2b(b"%b %d" % found, digest_size=8).hexdigest()
    next_one = file.with_name(f"{file.name}.{name}.partial")
    if not write_new(next_one, own):
        if (other := _read(next_one)) is not None and _left_behind(other, file.parent):
            next_one.unlink(missing_ok=True)
        return False
    if _read(file) != found:
        next_one.unlink(missing_ok=True)
        return False
    with writing(file):
        next_one.replace(file)
    return True


def _renew(file: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEWED):
        # What cannot be renewed is taken over: a delay. A disk that is gone is said where the work is written.
        with contextlib.suppress(OSError):
            os.utime(file)  # without a time: the file server's own


def _read(file: Path) -> Found | None:
    try:
        with file.open("rb") as opened:
            return opened.read(_LONGEST), os.fstat(opened.fileno()).st_mtime_ns
    except OSError as fault:
        if fault.errno not in _GONE:
            raise
        return None


def _left_behind(found: Found, folder: Path) -> bool:
    claim, renewed = found
    if _has_ended(claim):
        return True
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()
        now = os.fstat(file.fileno()).st_mtime_ns
    return abs(now - renewed) > STALE * 1e9  # from the future: of a clock that was set


def _has_ended(claim: bytes) -> bool:
    """Whether a claim is of a process of this machine that is gone; of others it cannot be told."""
    try:
        content = json.loads(claim)
        holder, processes = Holder(**content["holder"]), content["processes"]
    except (ValueError, TypeError, KeyError):  # no claim, but a file that somebody was writing
        return False
    this = Holder.this()
    return (holder.host, holder.boot, processes) == (this.host, this.boot, _processes()) and holder.alive is False
