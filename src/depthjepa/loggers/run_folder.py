"""The run folder as a logger, which every run has: configuration, environment, metrics and summary as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthjepa.logbook import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunFolderLogger:
    """Writes what `logbook.RunFolder` reads."""

    needs = None

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        self.folder.begin(config, environment)
        self.folder.forget_after(step)

    def log(self, record: Mapping[str, Any]) -> None:
        self.folder.log(record)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Nothing: the folder has the arrays that pictures are drawn from."""

    def table(self, name: str, table: Mapping[str, Any], step: int) -> None:
        """Nothing: the folder has a probe's tables from the probe itself."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_summary(summary)

    def close(self) -> None:
        """Nothing: every line is on the disk as soon as it is logged."""


LOGGER = RunFolderLogger
