"""Ctrl-C, SIGTERM and SIGUSR1: a wish to stop, granted at once where nothing can be lost, else between two steps.

SIGUSR1 is what Slurm is asked to send some minutes before a job's time is over (`--signal`).

The handlers of signals are the process's own, so they are set for the length of a block and put back after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from depthjepa.faults import RunStopped

SOON = 0.1  # seconds after which a signal comes again that a finaliser has swallowed


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(BaseException):
    """One of `SIGNALS` came; not an `Exception`, so that nothing which survives faults survives it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Stopping:
    """Whether somebody wishes that the work ends: `stopping()` tells."""

    def __init__(self) -> None:
        self._wishes: list[int] = []
        self._at_once = False

    def __call__(self) -> bool:
        return bool(self._wishes)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Interrupted` inside as soon as there is a wish, also one that came before."""
        before, self._at_once = self._at_once, True
        try:
            if self._wishes:
                raise Interrupted(self._wishes[-1])
            yield
        finally:
            self._at_once = before

    def wish(self, number: int, frame: object = None) -> None:
        """Take a signal in; a second Ctrl-C is granted at once, wherever it comes."""
        urgent = self._at_once or (bool(self._wishes) and number == signal.SIGINT)
        self._wishes.append(number)
        if urgent:
            raise Interrupted(number)


@contextlib.contextmanager
def _granted_again() -> Iterator[None]:
    """Let a signal come again whose `Interrupted` was raised inside a `__del__`, where Python ignores exceptions."""
    before = sys.unraisablehook

    def ignored(report: sys.UnraisableHookArgs) -> None:
        if not isinstance(report.exc_value, Interrupted):
            before(report)
            return
        again = threading.Timer(SOON, os.kill, (os.getpid(), report.exc_value.number))
        again.daemon = True
        again.start()

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def interruptions(goes_on: str = "") -> Iterator[Stopping]:
    """Turn `SIGNALS` into a wish to stop, inside of the block.

    `goes_on` tells people how to go on with work that can be: then an `Interrupted` leaves the block as `RunStopped`.
    """
    stopping = Stopping()
    try:
        before = {number: signal.signal(number, stopping.wish) for number in SIGNALS}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        with _granted_again():
            yield stopping
    except Interrupted as asked:
        if not goes_on:
            raise
        raise RunStopped(f"stopped; {goes_on}") from asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
