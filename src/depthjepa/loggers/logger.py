"""What a run tells while it trains, and to whom: a logger is anything that takes these calls.

Only the first process has loggers. Every call gets plain numbers, texts and figures, so a logger needs no tensor.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from depthjepa.distributed import Ranks
from depthjepa.faults import BadInput
from depthjepa.loggers import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Logger(Protocol):
    """One place where the figures of a run go; made with the path of its run folder, where it may keep its files.

    It opens what it needs with the first call: after `begin` in a training, without one where a run is probed later.
    """

    needs: ClassVar[str | None]  # a module that an extra installs

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        """Start, or go on with a run that has done `step` steps: records of later steps are forgotten, or replaced.

        They come again, with the same figures. `config` is resolved and nested; `environment` says what it runs on.
        """

    def log(self, record: Mapping[str, Any]) -> None:
        """Take the figures of one step: `step` (the first is 1), `epoch`, and losses and rates, or those of a probe."""

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Take a picture of the run after so many steps."""

    def table(self, name: str, table: Mapping[str, Any], step: int) -> None:
        """Take a probe's table, as `probes/NAME.json` has it, of the weights after so many steps."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take the summary of a run that has come to its end; a stopped run has none."""

    def close(self) -> None:
        """Write what is held back; always the last call, also when a run stops or fails."""


@contextlib.contextmanager
def open_loggers(names: Sequence[str], path: Path, ranks: Ranks) -> Iterator[tuple[Logger, ...]]:
    """Make the run folder's logger and those of `names`, each once, and close them however it ends.

    The first process has all, the others none. Raises `BadInput` where the library of one is not installed.
    """
    always = table.LOGGERS.names[0]
    with _opened(dict.fromkeys((always, *names)) if ranks.first else (), path) as loggers:
        yield loggers


def tell_table(names: Sequence[str], path: Path, name: str, content: Mapping[str, Any], step: int) -> None:
    """Tell the loggers of a run, which is over, of a probe's table; the run folder has it already.

    Where it is probed on a machine without the library of one, there is a warning.
    """
    for each in names:
        if each == table.LOGGERS.names[0]:
            continue
        try:
            check_libraries([each])
        except BadInput as fault:
            warnings.warn(f"the table {name} is in {path}, and not sent: {fault}", stacklevel=2)
            continue
        with _opened([each], path) as (logger,):
            logger.table(name, content, step)


def check_libraries(names: Sequence[str]) -> None:
    """Raise `BadInput` where the library of one of these loggers is not installed."""
    for name in names:
        if (module := table.LOGGERS.load(name).needs) is not None:
            library(name, module)


def library(logger: str, module: str) -> ModuleType:
    """A module of the library of a logger; `BadInput` says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise BadInput(f"train.loggers={logger} needs its library: pip install 'depthjepa[loggers]'") from missing


@contextlib.contextmanager
def _opened(names: Sequence[str] | Mapping[str, Any], path: Path) -> Iterator[tuple[Logger, ...]]:
    with contextlib.ExitStack() as closing:
        loggers = []
        for name in names:
            loggers.append(table.LOGGERS.load(name)(path))
            closing.callback(loggers[-1].close)
        yield tuple(loggers)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by their names, but for its `step`; a probe's without `epoch`, which the step has too."""
    known = ("step", "epoch") if "probe_score" in record else ("step",)
    return {key: float(value) for key, value in record.items() if key not in known and isinstance(value, Real)}


def column_keys(content: Mapping[str, Any]) -> list[str]:
    """What the columns of a probe's table are called in its rows, beginning with the rows' `name`."""
    return list(dict.fromkeys(key for row in content["rows"] for key in row))
