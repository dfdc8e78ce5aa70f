"""Rank, spread and share of position of the features that training predicts: signs of collapse, without labels."""

from __future__ import annotations

from collections.abc import Mapping

from depthjepa.columns import Column
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.evaluation.diagnostics import verdict
from depthjepa.evaluation.gathering import RANDOM, Views, size_text, unreadable_text
from depthjepa.evaluation.probes.task import Measured, Rows, Seen, SharedTask


def measure(config: RunConfig, seen: Mapping[Split, Seen]) -> Measured:
    """Figures of `evaluation.diagnostics` on the validation images."""
    return Measured({**seen["val"].features.diagnosis.figures()})


def protocol(config: RunConfig, views: Mapping[Split, Views], rows: Rows) -> str:
    """What the figures are of."""
    widths, val = ", ".join(sorted({f"{row['width']:.0f}" for row in rows})), views["val"]
    return (
        f"mean-pooled tokens (rank, deviation) and single tokens (shares of variance) of the frozen "
        f"{config.evaluation.which} encoder's last layer, layer-normalised as prediction targets are, on "
        f"{val.used} images at {size_text(config)}; width {widths}{unreadable_text(val)}"
    )


def verdicts(rows: Rows) -> list[str]:
    """What is collapsed against the random encoder; each sentence names its encoder where there are several."""
    figures = {row["name"]: {key: value for key, value in row.items() if key != "name"} for row in rows}
    baseline = figures.pop(RANDOM, None)
    if baseline is None:
        return []
    return [
        sentence if len(figures) == 1 else f"{name}: {sentence}"
        for name, own in figures.items()
        for sentence in verdict(own, baseline)
    ]


TASK = SharedTask(
    name="diagnose",
    title="Diagnostics of the features",
    about="rank, spread and share of position of the features: signs of collapse",
    columns=(
        Column(
            "rank_me",
            "RankMe",
            "effective number of dimensions of the features, their mean included",
            "dimensions",
            "higher",
        ),
        Column(
            "effective_rank",
            "effective rank, centred",
            "effective number of dimensions in which the features of images differ",
            "dimensions",
            "higher",
        ),
        Column(
            "deviation_mean",
            "deviation a dimension",
            "deviation of a dimension over images, the mean of all dimensions, in units of the features' root mean "
            "square",
            better="higher",
        ),
        Column(
            "position_share",
            "variance that position explains",
            "share of the tokens' variation that their place explains; near 1, they hardly depend on the image",
            better="lower",
        ),
        Column(
            "image_share",
            "variance that the image mean explains",
            "share of the tokens' variation that the mean of their image explains",
            better="higher",
        ),
    ),
    splits=("val",),
    command="diagnose",
    measure=measure,
    protocol=protocol,
    verdict=verdicts,
)
