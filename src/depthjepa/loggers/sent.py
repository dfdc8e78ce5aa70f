"""What a service was sent already, kept in the run folder: a resumed run sends none of it a second time.

A run that was killed goes on from its last checkpoint, and comes to steps once more that were sent before the kill. It
is the very same run, so their figures are the same; a service that only appends must not get them twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthjepa.logbook import read_object, to_json, write_whole

FOLDER = "loggers"  # below a run folder


class Sent:
    """The identity of a run with a service, and of every figure the last step that was sent."""

    def __init__(self, path: Path, service: str) -> None:
        self.file = path / FOLDER / f"{service}.json"
        content = read_object(self.file)
        self.run: str | None = content.get("run")
        self.last: dict[str, int] = content.get("last", {})
        self.unclosed: str | None = content.get("unclosed")  # where a service keeps what it may not have written yet

    def new(self, figures: Mapping[str, float], step: int) -> dict[str, float]:
        """Those figures of a step that were not sent yet."""
        return {key: value for key, value in figures.items() if step > self.last.get(key, 0)}

    def keep(self, figures: Mapping[str, Any] | None = None, step: int = 0) -> None:
        """Remember the run, and that these figures of a step are sent."""
        self.last |= dict.fromkeys(figures or (), step)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, to_json({"run": self.run, "last": self.last, "unclosed": self.unclosed}))
