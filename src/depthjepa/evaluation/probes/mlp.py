"""Classification with two layers, the source paper's head (section 5.2), and its accuracy after each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthjepa.columns import Column
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.drawing import charts
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.classification import chance
from depthjepa.evaluation.gathering import Views, views_text
from depthjepa.evaluation.probes.linear import COLUMNS
from depthjepa.evaluation.probes.task import LABELS, Measured, Rows, Section, Seen, SharedTask
from depthjepa.evaluation.trained_probes import HIDDEN, mlp
from depthjepa.runs import Run, probe_files, read_arrays

ALL_COLUMNS = (
    *COLUMNS,
    Column(
        "raw_train_accuracy",
        "training accuracy, raw",
        "the same of a head that reads the features as they are; far lower where they hardly differ between images",
        "%",
        "higher",
    ),
    Column(
        "raw_val_accuracy",
        "validation accuracy, raw",
        "the same of a head that reads the features as they are",
        "%",
        "higher",
    ),
)


def measure(config: RunConfig, seen: Mapping[Split, Seen]) -> Measured:
    """Accuracies [%] after the last epoch beside chance, and the curves of all epochs, in [0, 1]."""
    train, val = seen["train"].features.pooled, seen["val"].features.pooled
    width, figures, curves = train.values.shape[1], dict[str, float | str](), dict[str, np.ndarray]()
    for prefix, standardised in (("", True), ("raw_", False)):
        epochs, seed = config.evaluation.probe_epochs, config.seed
        found = mlp(train, val, width, epochs=epochs, seed=seed, standardised=standardised)
        curves |= {f"{prefix}train": found.train_accuracy, f"{prefix}val": found.val_accuracy}
        figures |= {f"{name}_accuracy": 100 * float(curves[name][-1]) for name in (f"{prefix}train", f"{prefix}val")}
    guess = 100 * chance(train, val)
    return Measured(figures, {"chance": {"val_accuracy": guess, "raw_val_accuracy": guess}}, curves)


def protocol(config: RunConfig, views: Mapping[Split, Views], rows: Rows) -> str:
    """What the figures are of."""
    return (
        f"two layers ({HIDDEN} hidden) on standardised (raw: as they are) mean-pooled tokens of the frozen "
        f"{config.evaluation.which} encoder, {config.evaluation.probe_epochs} epochs; "
        f"{views_text(views['train'], views['val'])}"
    )


def accuracy_figures(runs: Sequence[Run]) -> list[Captioned]:
    """Accuracy of the two-layer head after each epoch, all runs in one figure for each set of data."""
    groups: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for file in probe_files(runs, f"{TASK.name}*.npz"):
        for run in runs:
            if (arrays := read_arrays(run, file, "train", "val")) is None:
                continue
            curves = groups.setdefault(file, {})
            curves[run.name] = arrays["train"], arrays["val"]
            if "random_train" in arrays:
                curves.setdefault("random encoder", (arrays["random_train"], arrays["random_val"]))
    seen = (
        "Two layers on the pooled features of the frozen encoder, as in figure 4 of the source paper: accuracy after "
        "each epoch on the images that they are trained on (all that the paper shows) and on others. The random "
        "encoder was never trained."
    )
    failed = (
        "a run's curve on validation images would lie on the random encoder's, however high that on training images: "
        "images can be learned by heart from any features."
    )
    return [Captioned(charts.accuracy_curves(curves), seen, failed) for curves in groups.values()]


TASK = SharedTask(
    name="mlp",
    title="Classification with two layers",
    about="classes by the source paper's head of two layers",
    columns=ALL_COLUMNS,
    guesses=("chance",),
    needs=(LABELS,),
    reads=("probe_epochs",),
    section=Section("How a classifier learns on frozen features", accuracy_figures),
    measure=measure,
    protocol=protocol,
)
