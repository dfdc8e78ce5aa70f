"""One process at a time writes in a folder: runs, fits and studies are locked while somebody works there.

The lock is a file in the folder, `.lock`, that says who holds it: host, process, since when, command. The operating
system's lock on that file decides: it ends with its process, also with one that is killed. What stands in the file
decides where that does not reach: on file systems without locks, and about processes of other machines, since a network
file system may keep its locks to each of them. Who only reads is not asked for anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from depthjepa import distributed
from depthjepa.faults import BadInput
from depthjepa.logbook import refuse_unwritable, writing

NAME = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
COMMAND = 120  # characters of a command that are kept
SETTLING = 1.0  # seconds in which two processes that begin together see each other, where the system has no locks
LOOK_EVERY = 0.05  # seconds

_opened_here: set[int] = set()  # files of the locks of this process


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock. `boot` names a machine from one start to the next, `start` is that of the process [ticks]."""

    host: str
    boot: str
    process: int
    start: int | None
    since: str
    command: str

    @classmethod
    def this(cls) -> Holder:
        """This process, from now on."""
        own, now = os.getpid(), datetime.now().astimezone()
        return cls(socket.gethostname(), _boot(), own, _start_of(own), now.isoformat(" ", "seconds"), _command())

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since} ({self.command})"

    @property
    def alive(self) -> bool | None:
        """Whether it still runs; None of another machine, where that cannot be told."""
        if self.boot == _boot():
            return _start_of(self.process) == self.start  # another process may have its number by now
        return False if self.host == socket.gethostname() else None  # this machine was started again since


def _boot() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else socket.gethostname()


def _start_of(process: int) -> int | None:
    """Ticks of the machine's clock when a process began, 0 where that is not told; None without such a process."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # somebody else's
            pass
        return 0
    try:
        # What stands before the last parenthesis is the program's name, which may hold anything.
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(rest[18])  # a zombie has ended


def _command() -> str:
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return " ".join([name, *sys.argv[1:]])[:COMMAND]


class Lock:
    """The lock of a folder; `name` tells apart the locks of its parts."""

    def __init__(self, folder: str | Path, name: str = NAME) -> None:
        self.folder = Path(folder)
        self.file = self.folder / name
        self._opened: int | None = None
        self._made: list[Path] = []  # folders that were not there, the innermost first

    def take(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Take the lock, making the folder where there is none; `say` is told of a lock that was left behind.

        Raises `BadInput` where somebody has it, may have it, or the folder cannot be written.
        """
        with writing(self.folder):
            try:
                self._opened, locks = self._open()
            except OSError:
                refuse_unwritable(self.folder, folder=True)
                raise
        _opened_here.add(self._opened)
        try:
            if before := _read(self._opened):
                if before.alive is not False:
                    raise self._held_by(before)
                say(f"{self.folder} was left locked by {before}, which is gone: this process goes on there")
            mine = Holder.this()
            with writing(self.file):
                os.ftruncate(self._opened, 0)
                os.pwrite(self._opened, json.dumps(asdict(mine)).encode(), 0)
            if not locks:
                time.sleep(SETTLING)
                if (last := _read(self._opened)) not in (None, mine):
                    raise self._held_by(last)
        except BaseException:
            self._close()
            raise

    def release(self) -> None:
        """Give the lock back, with the folders that were made for it and hold nothing else; without it, nothing."""
        if self._opened is None or self._opened not in _opened_here:
            return
        if _is_at(self._opened, self.file):
            self.file.unlink(missing_ok=True)
        self._close()
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _open(self) -> tuple[int, bool]:
        """Open and lock the file; whether there are locks here. One that was removed meanwhile is made anew."""
        while True:
            missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._made = self._made or missing
                opened = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            except (FileNotFoundError, FileExistsError):
                if self.folder.is_file():
                    raise
                continue  # whoever made a folder has given it back meanwhile
            locks = True
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                if fault.errno in HELD:
                    last = _read(opened, wait=SETTLING)
                    os.close(opened)
                    raise self._held_by(last) from fault
                locks = False
            if _is_at(opened, self.file):
                return opened, locks
            os.close(opened)

    def _held_by(self, holder: Holder | None) -> BadInput:
        if holder is not None and holder.alive is None:
            return BadInput(
                f"{self.folder} is held by {holder}; from {socket.gethostname()} it cannot be told whether that still "
                f"runs: once it has ended, remove {self.file}"
            )
        return BadInput(
            f"{self.folder} is in use by {holder or 'a process that has only just begun'}, and one process at a time "
            f"writes there: wait until it has ended, or choose another --out{distributed.started_apart()}"
        )

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened in _opened_here:
            _opened_here.discard(opened)  # first: another thread may get the number as soon as it is free
            os.close(opened)


def holder_of(file: Path) -> Holder | None:
    """Who holds a lock, or may hold it, as far as its file tells; None where it is free."""
    try:
        opened = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        found = _read(opened)
    finally:
        os.close(opened)
    return None if found is None or found.alive is False else found


def refuse_held(folder: str | Path) -> None:
    """Raise `BadInput` where somebody has a folder to himself; for work that many share (`shared_work`)."""
    lock = Lock(folder)
    if (holder := holder_of(lock.file)) is not None:
        raise lock._held_by(holder)


def _read(opened: int, wait: float = 0.0) -> Holder | None:
    """Who stands in an open lock file; one that is empty is looked at again for `wait` seconds."""
    end = time.monotonic() + wait
    while True:
        try:
            return Holder(**json.loads(os.pread(opened, 1 << 16, 0)))
        except (ValueError, TypeError):
            if time.monotonic() >= end:
                return None
            time.sleep(LOOK_EVERY)


def _is_at(opened: int, file: Path) -> bool:
    """Whether an open file is the one that stands there now."""
    try:
        return os.path.samestat(os.fstat(opened), file.stat())
    except FileNotFoundError:
        return False


def _forget_in_child() -> None:
    """A forked process (a worker that reads images) has no part in the locks, and may outlive their process."""
    for opened in _opened_here:
        os.close(opened)
    _opened_here.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def locked(
    folder: str | Path,
    ranks: distributed.Ranks | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
    name: str = NAME,
) -> Iterator[None]:
    """Hold the lock of a folder inside of the block: the processes of one run together, by the first of them.

    Raises `BadInput` (in the others `RunStopped`) where somebody else has it; see `Lock.take`.
    """
    lock = Lock(folder, name)
    distributed.first_writes(ranks or distributed.Ranks(), lambda: lock.take(say))
    try:
        yield
    finally:
        lock.release()


def wait_for(folder: Path, seconds: float) -> None:
    """Wait until nobody holds a folder, at most so long."""
    end = time.monotonic() + seconds
    while holder_of(folder / NAME) is not None and time.monotonic() < end:
        time.sleep(LOOK_EVERY)


def is_free_of_files(folder: Path, but: Collection[str] = ()) -> bool:
    """Whether a folder holds nothing `but` some names, locks, and files that are just being written."""
    names = [each.name for each in folder.iterdir()]
    return all(name in but or name.startswith(NAME) or name.endswith(".partial") for name in names)
