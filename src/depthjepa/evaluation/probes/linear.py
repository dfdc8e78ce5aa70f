"""Linear classification: logistic regression on pooled features, or the I-JEPA protocol's sweep of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from depthjepa.columns import Column
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.evaluation.classification import ClassifierResult, chance, linear
from depthjepa.evaluation.depth_readouts import encode_layers
from depthjepa.evaluation.features import pooled_features
from depthjepa.evaluation.gathering import Views, views_text
from depthjepa.evaluation.probes.task import LABELS, Measured, Probe, Rows, Seen, SharedTask, Subject, Variant
from depthjepa.evaluation.trained_probes import SETTINGS, TOGETHER, sweep

COLUMNS = (
    Column(
        "train_accuracy",
        "training accuracy",
        "share of the training images whose class the classifier gives; it was fitted on them, and can learn them by "
        "heart",
        "%",
        "higher",
    ),
    Column(
        "val_accuracy",
        "validation accuracy",
        "share of the validation images whose class the classifier gives",
        "%",
        "higher",
    ),
)
SETTING = Column(
    "setting",
    "layers, rate, weight decay",
    "the setting of the sweep that told most of a fifth of the training images, which it was not fitted on",
)


def measure(config: RunConfig, seen: Mapping[Split, Seen]) -> Measured:
    """Accuracies [%] of logistic regression, beside chance."""
    train, val = seen["train"].features.pooled, seen["val"].features.pooled
    return classified(linear(train, val, config.seed), seen)


def classified(result: ClassifierResult, seen: Mapping[Split, Seen]) -> Measured:
    """The row of a classifier whose strength was chosen, beside chance."""
    guess = chance(seen["train"].features.pooled, seen["val"].features.pooled)
    found: dict[str, float | str] = {
        "train_accuracy": 100 * result.train_accuracy,
        "val_accuracy": 100 * result.val_accuracy,
        "weight_decay": result.weight_decay,
    }
    return Measured(found, {"chance": {"val_accuracy": 100 * guess}})


def protocol(config: RunConfig, views: Mapping[Split, Views], rows: Rows) -> str:
    """What the figures are of."""
    return (
        f"linear classifier on standardised mean-pooled tokens of the frozen {config.evaluation.which} encoder, its "
        f"strength chosen on a fifth of the training data; {views_text(views['train'], views['val'])}"
    )


def run_sweep(subject: Subject) -> Probe:
    """The sweep on the tokens of the last layer and of the last four; see `evaluation.trained_probes`."""
    config, encoder, train, val = subject.config, subject.encoder, subject.train, subject.val
    epochs, layers = config.evaluation.probe_epochs, min(TOGETHER, encoder.depth)
    blocks = list(range(encoder.depth - layers, encoder.depth))
    rows: list[dict[str, Any]] = []
    for name, each in subject.named.items():
        encode = encode_layers(each, blocks, subject.device, config.evaluation.precision)
        seen, unseen = (pooled_features(encode, views()) for views in (train, val))
        if not rows:
            rows.append({"name": "chance", "val_accuracy": 100 * chance(seen, unseen)})
        found = sweep(seen, unseen, encoder.width, epochs=epochs, seed=config.seed)
        best = found.chosen
        rows.append(
            {
                "name": name,
                "train_accuracy": 100 * found.train_accuracy,
                "val_accuracy": 100 * found.val_accuracy,
                "setting": f"{best.layers}, {best.lr:g}, {best.weight_decay:g}",
            }
        )
    how = (
        f"linear classifier on standardised mean-pooled tokens of the last or the last {layers} layers, the best of "
        f"{len(SETTINGS)} settings by a fifth of the training data of the frozen {config.evaluation.which} encoder, "
        f"{epochs} epochs; {views_text(train, val)}"
    )
    return Probe(TASK.table(train.source, how, rows), variant="-sweep")


TASK = SharedTask(
    name="linear",
    title="Linear classification",
    about="classes by a linear classifier",
    columns=(*COLUMNS, SETTING),
    guesses=("chance",),
    needs=(LABELS,),
    measure=measure,
    protocol=protocol,
    reads=("linear_protocol",),
    variant=Variant(
        lambda config: config.evaluation.linear_protocol == "sweep",
        "evaluation.linear_protocol=sweep",
        run_sweep,
        reads=("probe_epochs",),
    ),
)
