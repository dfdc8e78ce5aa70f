"""The loggers: one row and one file each. Every run has the first one, the run folder.

A row's name is a value of `train.loggers`. Its module has a `LOGGER`, which makes a `logger.Logger` of the path of a
run folder.
"""

from __future__ import annotations

from depthjepa.kinds import Row, Table

LOGGERS = Table(
    what="logger",
    member="LOGGER",
    rows=(
        Row("run_folder", "files in the run folder, which every run has", "loggers.run_folder"),
        Row("tensorboard", "event files below the run folder", "loggers.tensorboard"),
        Row("wandb", "Weights & Biases, online or offline", "loggers.wandb", also=("weights and biases", "w&b")),
        Row("mlflow", "an MLflow server, or files below the run folder", "loggers.mlflow"),
    ),
)


def check_logger(name: str) -> str:
    """A value of `train.loggers` itself, for the configuration; refuses others as a `Literal` of all would."""
    return LOGGERS.check(name)
