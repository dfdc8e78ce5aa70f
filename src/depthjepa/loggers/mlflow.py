"""MLflow: the server of `MLFLOW_TRACKING_URI`, or where none is named files in `loggers/mlflow` below the run folder.

The experiment is `MLFLOW_EXPERIMENT_NAME`, by default depthjepa. The client alone (`mlflow-skinny`) is enough.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthjepa.faults import RunStopped
from depthjepa.logbook import RunFolder, flatten, plain
from depthjepa.loggers.logger import library, scalars
from depthjepa.loggers.sent import FOLDER, Sent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMS_AT_ONCE = 100  # a server takes no more
LONGEST_PARAM = 500  # characters


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Stop a run whose server does not answer: what it lacks it gets once the run goes on."""
    import mlflow

    try:
        yield
    except mlflow.MlflowException as fault:
        why = str(fault).splitlines()[0]
        raise RunStopped(f"train.loggers=mlflow: {why}; go on with --resume once it answers") from fault


class MlflowLogger:
    """Metrics by step, parameters, pictures and tables as artifacts. A resumed run goes on under the same ID."""

    needs = "mlflow"

    def __init__(self, path: Path) -> None:
        self._mlflow = library("mlflow", self.needs)
        self._path = path
        self._sent = Sent(path, "mlflow")
        self._opened: Any = None

    def _open(self) -> tuple[Any, str]:
        """The client and the run's ID."""
        if self._opened is None:
            address = os.environ.get("MLFLOW_TRACKING_URI")
            if address is None:
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it would rather have a database
                address = (self._path / FOLDER / "mlflow").resolve().as_uri()
            self._opened = self._mlflow.MlflowClient(tracking_uri=address)
        client = self._opened
        if self._sent.run is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "depthjepa")
            known = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if known is None else known.experiment_id
            self._sent.run = client.create_run(experiment, run_name=self._path.resolve().name).info.run_id
            self._sent.keep()
        return client, self._sent.run

    @_reached()
    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        client, run = self._open()
        client.set_terminated(run, "RUNNING")
        entity, known = self._mlflow.entities.Param, client.get_run(run).data.params  # a parameter is given once
        given = {key: str(value)[:LONGEST_PARAM] for key, value in flatten(plain(config)).items() if key not in known}
        params = [entity(key, value) for key, value in given.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            client.log_batch(run, params=params[start : start + PARAMS_AT_ONCE])
        client.log_dict(run, plain(config), "config.yaml")
        client.log_dict(run, plain(environment), "environment.json")
        for record in RunFolder(self._path).metrics():  # what a server that did not answer has not got
            if record["step"] <= step:
                self.log(record)

    @_reached()
    def log(self, record: Mapping[str, Any]) -> None:
        if figures := self._sent.new(scalars(record), record["step"]):
            client, run = self._open()
            now, entity = int(1000 * time.time()), self._mlflow.entities.Metric
            client.log_batch(run, metrics=[entity(key, value, now, record["step"]) for key, value in figures.items()])
            self._sent.keep(figures, record["step"])

    @_reached()
    def picture(self, name: str, figure: Figure, step: int) -> None:
        client, run = self._open()
        client.log_figure(run, figure, f"{name}.png")

    @_reached()
    def table(self, name: str, table: Mapping[str, Any], step: int) -> None:
        client, run = self._open()
        client.log_dict(run, plain(table), f"probes/{name}.json")

    @_reached()
    def finish(self, summary: Mapping[str, Any]) -> None:
        client, run = self._open()
        client.log_dict(run, plain(summary), "summary.json")
        client.set_terminated(run, "FINISHED")

    def close(self) -> None:
        """Nothing: every call is with the server when it returns."""


LOGGER = MlflowLogger
