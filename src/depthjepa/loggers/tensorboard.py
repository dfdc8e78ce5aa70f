"""TensorBoard: event files in `loggers/tensorboard` below the run folder; `tensorboard --logdir runs` shows all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthjepa.logbook import to_json, writing
from depthjepa.loggers.logger import column_keys, library, scalars
from depthjepa.loggers.sent import FOLDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger:
    """Scalars, pictures, and tables as text.

    A resumed run writes another file, which says that what earlier files have beyond its first step counts no more:
    TensorBoard leaves it out (`purge_step`). Every call is on the disk when it returns, so a kill loses nothing.
    """

    needs = "torch.utils.tensorboard"

    def __init__(self, path: Path) -> None:
        self._make = library("tensorboard", self.needs).SummaryWriter
        self._folder = path / FOLDER / "tensorboard"
        self._writer: SummaryWriter | None = None

    def _open(self, **options: Any) -> SummaryWriter:
        if self._writer is None:
            with writing(self._folder):
                self._writer = self._make(str(self._folder), **options)
        return self._writer

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        writer = self._open(purge_step=step + 1)
        told = to_json({"config": config, "environment": environment})
        writer.add_text("configuration", f"```json\n{told}```", step + 1)  # purged as well by the next one
        writer.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        writer = self._open()
        with writing(self._folder):
            for key, value in scalars(record).items():
                writer.add_scalar(key, value, record["step"])
            writer.flush()

    def picture(self, name: str, figure: Figure, step: int) -> None:
        self._open().add_figure(name, figure, step, close=False)

    def table(self, name: str, table: Mapping[str, Any], step: int) -> None:
        keys = column_keys(table)
        lines = [keys, ["---"] * len(keys)] + [[_cell(row.get(key)) for key in keys] for row in table["rows"]]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._open().add_text(f"probes/{name}", f"{text}\n\n{table.get('protocol', '')}", step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing: TensorBoard has the figures of every step."""

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


LOGGER = TensorBoardLogger
