"""How far a command is: on a terminal a line with a bar for all that is at work, elsewhere plain lines of text.

What takes a while says so where it stands, by `task` or `track`; one may lie inside another. A file, a pipe or a
scheduler's log gets a line every `EVERY` seconds, whether or not anything has advanced since: from a clock of its own,
so that a step, a fit or a download that takes minutes does not look like a process that hangs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from depthjepa.faults import BadInput

T = TypeVar("T")

EVERY = 25.0  # seconds between two lines of text
BAR = 30  # characters


@dataclass
class Task:
    """Something that is at work: `done` of `total` (None: nobody knows how many) and what it says of itself."""

    name: str
    total: int | None = None
    done: int = 0
    figures: str = ""
    began: float = field(default_factory=lambda: time.monotonic())
    first: int = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.done

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the speed so far; None before the first step."""
        if self.total is None or self.done == self.first:
            return None
        return (time.monotonic() - self.began) / (self.done - self.first) * (self.total - self.done)

    @property
    def words(self) -> str:
        """How far it is, for people."""
        spent, left = time.monotonic() - self.began, self.seconds_left
        parts = [f"for {duration(spent)}" if self.total is None else f"{self.done} of {self.total}"]
        parts += [self.figures] if self.figures else []
        parts += [] if left is None else [f"about {duration(left)} left"]
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


_at_work: list[Task] = []  # the outermost first
_shown = contextlib.ExitStack()  # holds the display while anything is at work


@contextlib.contextmanager
def task(name: str, total: int | None = None, done: int = 0) -> Iterator[Task]:
    """Show a task until the end of the block; set its `done` and `figures` on the way.

    The first process of a run shows its tasks, the others do not.
    """
    this = Task(name, total, done)
    if not _at_work:
        _shown.enter_context(_bars() if sys.stdout.isatty() else _lines())
    _at_work.append(this)
    try:
        yield this
    finally:
        _at_work.remove(this)
        if not _at_work:
            _shown.close()


def track(items: Iterable[T], name: str, total: int) -> Generator[T]:
    """Yield the items of something that takes a while, as a task."""
    with task(name, total) as this:
        for item in items:
            yield item
            this.done += 1


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(EVERY):
            if _is_shown():
                print("; ".join(map(str, list(_at_work))), flush=True)

    threading.Thread(target=write, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def draw() -> Table:
        grid = Table.grid(padding=(0, 1))
        for each in list(_at_work):
            bar = ProgressBar(each.total, each.done, width=BAR, pulse=each.total is None)
            grid.add_row(Text(each.name), bar, Text(each.words))
        return grid

    with Live(get_renderable=draw, refresh_per_second=4, transient=True) if _is_shown() else contextlib.nullcontext():
        yield


def _is_shown() -> bool:
    from depthjepa.distributed import ranks  # late: it takes torch, and this file is for all commands

    try:
        return ranks().first
    except BadInput:  # the command says it
        return True


def duration(seconds: float) -> str:
    """Format seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
