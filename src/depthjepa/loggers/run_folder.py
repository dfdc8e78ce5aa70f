"""The run folder as a logger, which every run has: configuration, environment, metrics and summary as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthjepa.logbook import RunFolder


class RunFolderLogger:
    """Writes what `logbook.RunFolder` reads."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        self.folder.begin(config, environment)
        self.folder.forget_after(step)

    def log(self, record: Mapping[str, Any]) -> None:
        self.folder.log(record)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_summary(summary)

    def close(self) -> None:
        """Nothing: every line is on the disk as soon as it is logged."""


LOGGER = RunFolderLogger
