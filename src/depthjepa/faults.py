"""Faults of the user: one clear message that says what, where, and the nearest valid choice.

The command line prints the message and ends with exit status 2; a program catches `BadInput`.
Everything else that goes wrong is a defect of ours or of the machine and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """The input is at fault (a path, a file, a key, a shape); the message is complete and for people."""


class RunStopped(Exception):
    """The run cannot go on (non-finite loss, full disk). The last good checkpoint is whole; exit status 1."""


class OutOfReach(RunStopped):
    """What is read does not answer any more; the run is whole, and goes on from where it is once it does."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'X'?)` for the closest of `choices`, or an empty text."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
