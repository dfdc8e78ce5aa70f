"""Weights & Biases: online, or `WANDB_MODE=offline`, which leaves files in `loggers/wandb` for `wandb sync`.

Its own variables say where and how (`WANDB_PROJECT`, by default depthjepa, `WANDB_ENTITY`, `WANDB_MODE`, …).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder, plain
from depthjepa.loggers.logger import column_keys, library, scalars
from depthjepa.loggers.sent import FOLDER, Sent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WandbLogger:
    """Rows by step, pictures, tables, and the run's summary.

    A resumed run goes on under the same ID; offline that is a second file, and `wandb sync` puts both together. W&B
    holds rows back, and a process that is killed loses them. So a row counts as sent once W&B is closed: offline the
    file of a session that was killed is thrown away, online the server says how far it came, and what lacks is sent
    again from the run folder.
    """

    needs = "wandb"

    def __init__(self, path: Path) -> None:
        self._wandb = library("wandb", self.needs)
        self._path = path
        self._sent = Sent(path, "wandb")
        self._run: Any = None
        self._training = False  # or a probe afterwards, which leaves alone what a training left
        self._at_server = 0  # of a session that was killed, at the server

    def _open(self, config: Mapping[str, Any] | None = None) -> Any:
        if self._run is None:
            known = self._sent.run
            self._sent.run = known or os.urandom(4).hex()
            (self._path / FOLDER).mkdir(parents=True, exist_ok=True)
            mode: Any = os.environ.get("WANDB_MODE")  # also where W&B was loaded before it was set
            with _reached():
                self._run = self._wandb.init(
                    mode=mode,
                    project=os.environ.get("WANDB_PROJECT", "depthjepa"),
                    id=self._sent.run,
                    name=None if known else self._path.resolve().name,
                    dir=str(self._path / FOLDER),
                    resume="allow",
                    config=None if config is None else plain(config),
                    settings=self._wandb.Settings(silent=True, console="off"),
                )
            if self._training:
                self._sent.unclosed = self._run.settings.sync_dir
            self._sent.keep()
        return self._run

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        killed, self._training = self._sent.unclosed, True
        run = self._open({**config, "environment": environment})
        if killed is None:
            return
        if run.offline:
            shutil.rmtree(killed, ignore_errors=True)  # what it had is sent again, all of it
        elif run.step:
            self._at_server = run.step - 1
        for record in RunFolder(self._path).metrics():
            if record["step"] <= step:
                self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        figures = self._sent.new(scalars(record), record["step"])
        if figures and record["step"] > self._at_server:
            self._open().log(figures, step=record["step"])
            self._sent.last |= dict.fromkeys(figures, record["step"])

    def picture(self, name: str, figure: Figure, step: int) -> None:
        drawn = BytesIO()
        figure.savefig(drawn, format="png")
        self._beside({name: self._wandb.Image(Image.open(drawn), caption=f"step {step}")}, step)

    def table(self, name: str, table: Mapping[str, Any], step: int) -> None:
        keys = column_keys(table)
        rows = [[row.get(key) for key in keys] for row in table["rows"]]
        self._beside({f"probes/{name}": self._wandb.Table(columns=[*keys], data=rows)}, step)

    def _beside(self, content: Mapping[str, Any], step: int) -> None:
        """Log what is no row of figures; without a step W&B counts one more, and refuses later rows of that step."""
        run = self._open()
        run.log(content, step=max(step, run.step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._open().summary.update(plain(summary))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()  # waits until all is written
            if self._training:
                self._sent.unclosed = None
            self._sent.keep()


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.Error as fault:
        raise BadInput(f"train.loggers=wandb: {fault} WANDB_MODE=offline keeps all in the run folder.") from fault


LOGGER = WandbLogger
