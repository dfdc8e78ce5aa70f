"""Classification with attentive pooling: one learned query over all tokens of an image."""

from __future__ import annotations

from collections.abc import Mapping

from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.evaluation.attentive_probe import attentive
from depthjepa.evaluation.gathering import Views, views_text
from depthjepa.evaluation.probes.linear import COLUMNS, classified
from depthjepa.evaluation.probes.task import LABELS, Measured, Rows, Seen, SharedTask


def measure(config: RunConfig, seen: Mapping[Split, Seen]) -> Measured:
    """Accuracies [%], beside chance."""
    train, val = seen["train"].features, seen["val"].features
    assert train.tokens is not None and val.tokens is not None
    result = attentive(
        (train.pooled, train.tokens),
        (val.pooled, val.tokens),
        epochs=config.evaluation.attentive_epochs,
        lr=config.evaluation.attentive_lr,
        seed=config.seed,
    )
    return classified(result, seen)


def protocol(config: RunConfig, views: Mapping[Split, Views], rows: Rows) -> str:
    """What the figures are of."""
    return (
        f"attentive pooling by one query and linear classifier on standardised tokens of the frozen "
        f"{config.evaluation.which} encoder, {config.evaluation.attentive_epochs} epochs at "
        f"{config.evaluation.attentive_lr:g}, its weight decay chosen on a fifth of the training data; "
        f"{views_text(views['train'], views['val'])}"
    )


TASK = SharedTask(
    name="attentive",
    title="Classification with attentive pooling",
    about="classes by a query over all tokens",
    columns=COLUMNS,
    guesses=("chance",),
    needs=(LABELS,),
    reads=("attentive_epochs", "attentive_lr"),
    tokens=True,
    measure=measure,
    protocol=protocol,
)
