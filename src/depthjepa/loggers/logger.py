"""What a run tells while it trains, and to whom: a logger is anything that takes these four calls.

Only the first process has loggers. Every call gets plain numbers and texts, so a logger needs no tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from depthjepa.distributed import Ranks
from depthjepa.loggers import table


@runtime_checkable
class Logger(Protocol):
    """One place where the figures of a run go; made with the path of its run folder, where it may keep its files."""

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        """Start, or go on with a run that has done `step` steps: records of later steps are forgotten, or replaced.

        They come again, with the same figures. `config` is resolved and nested; `environment` says what it runs on.
        """

    def log(self, record: Mapping[str, Any]) -> None:
        """Take the figures of one step: `step` (the first is 1), `epoch`, and losses and rates, or those of a probe."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take the summary of a run that has come to its end; a stopped run has none."""

    def close(self) -> None:
        """Write what is held back; always the last call, also when a run stops or fails."""


@contextlib.contextmanager
def open_loggers(names: Sequence[str], path: Path, place: Ranks) -> Iterator[tuple[Logger, ...]]:
    """Make the run folder's logger and those of `names`, each once, and close them however it ends.

    The first process has all, the others none.
    """
    always = table.LOGGERS.names[0]
    with contextlib.ExitStack() as closing:
        loggers = []
        for name in dict.fromkeys((always, *names)) if place.first else ():
            loggers.append(table.LOGGERS.load(name)(path))
            closing.callback(loggers[-1].close)
        yield tuple(loggers)
