"""What may be claimed of the arms of a study: paired differences over its seeds, tested, corrected and put into words.

The arms of a seed share initial weights, order of the data and masks, so what is compared is the difference of two arms
with the same seed. One comparison has one measure and one arm that stands against several others; its tests are
corrected together (Holm 1979, or in a fixed sequence).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field, PositiveFloat

from depthjepa.faults import nearest
from depthjepa.settings import configuration
from depthjepa.study.inference import (
    bootstrap_interval,
    equivalence,
    holm,
    in_sequence,
    non_inferiority,
    paired_interval,
    sign_flip,
)
from depthjepa.study.results import run_place
from depthjepa.study.wording import claim

FEWEST = 2  # seeds that a deviation takes
Correction = Literal["holm", "sequence"]
CORRECTIONS = {"holm": holm, "sequence": in_sequence}
SUMS = ("within_residual", "within_total")  # of each image, as the depth probe keeps them


@configuration
class Comparison:
    """One arm against others, by one figure of the study's table; tests over the others are corrected together."""

    measure: str
    """Figure that is compared, as PROBE.KEY with a probe of the study, such as depth.r2_within."""
    first: str
    """Arm that stands against the others."""
    against: Annotated[tuple[str, ...], Field(min_length=1)]
    """Arms that it is compared with, one by one; also rows of its tables that no run trained (`random encoder`)."""
    margin: PositiveFloat
    """Difference, in the figure's unit, that would not matter; fixed before the study runs."""
    correction: Correction = "holm"
    """How the tests over the others are corrected: `holm`, or `sequence`: one after another in the order of `against`,
    each only where all before it hold."""


def compare(comparisons: Sequence[Comparison], content: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Claims of all comparisons from the content of `study.json`, in the order asked for; see `claims_of`."""
    return [each for comparison in comparisons for each in claims_of(comparison, content, folder)]


def claims_of(comparison: Comparison, content: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One entry for each arm with at least two seeds in common; the others wait for theirs.

    What no run trained (the random encoder, say) stands against the first arm with the figures of that arm's tables.

    An entry has the differences by seed, their mean, deviation and 95 % t interval, the exact sign-flip p and the
    corrected one, whether the arms are equivalent (and the first not inferior) within the margin, the interval of a
    bootstrap over seeds and images where the figures of single images are kept, and `sentence`, which says what may be
    claimed.
    """
    columns = {column["key"]: column for column in content["columns"]}
    column = columns.get(comparison.measure, {})
    better: Literal["higher", "lower"] = "lower" if column.get("better") == "lower" else "higher"
    found = {
        (name, run["seed"]): figures[comparison.measure]
        for run in content["runs"]
        for name, figures in rows_of(run, baselines=run["arm"] == comparison.first)
        if comparison.measure in figures
    }
    paired = {
        arm: [seed for seed in content["seeds"] if (comparison.first, seed) in found and (arm, seed) in found]
        for arm in comparison.against
    }
    known = {arm: seeds for arm, seeds in paired.items() if len(seeds) >= FEWEST}
    differences = {
        arm: np.array([found[comparison.first, seed] - found[arm, seed] for seed in seeds], dtype=np.float64)
        for arm, seeds in known.items()
    }
    # Arms that still wait for their seeds count as what was not shown: what was fixed beforehand is corrected for.
    flips = {arm: sign_flip(differences[arm]) if arm in differences else 1.0 for arm in comparison.against}
    corrected = CORRECTIONS[comparison.correction](list(flips.values()))
    adjusted = dict(zip(flips, corrected, strict=True))
    if content["runs"] and not found:
        hint = nearest(comparison.measure, columns)
        sentence = f"Nothing can be claimed of {comparison.measure}: no run has such a figure{hint}."
        return [{"measure": comparison.measure, "first": comparison.first, "sentence": sentence}]
    return [
        _entry(comparison, arm, column, better, known[arm], each, flips[arm], float(adjusted[arm]), folder)
        for arm, each in differences.items()
    ]


def rows_of(run: Mapping[str, Any], *, baselines: bool) -> Iterator[tuple[str, Mapping[str, float]]]:
    """The figures of a run's arm, and those of what stands in its tables beside it."""
    yield run["arm"], run["figures"]
    if baselines:
        yield from run["baselines"].items()


def _entry(
    comparison: Comparison,
    arm: str,
    column: Mapping[str, Any],
    better: Literal["higher", "lower"],
    seeds: Sequence[int],
    differences: Float64[np.ndarray, " seeds"],
    p: float,
    p_adjusted: float,
    folder: Path,
) -> dict[str, Any]:
    interval, margin = paired_interval(differences), comparison.margin
    toward = differences if better == "higher" else -differences
    entry = {
        "measure": comparison.measure,
        "first": comparison.first,
        "against": arm,
        "margin": margin,
        "seeds": list(seeds),
        "differences": differences.tolist(),
        "mean": interval.mean,
        "deviation": interval.deviation,
        "low": interval.low,
        "high": interval.high,
        "p": p,
        "p_adjusted": p_adjusted,
        "equivalent": equivalence(differences, margin).holds,
        "not_inferior": non_inferiority(toward, margin).holds,
    }
    probe, _, figure = comparison.measure.partition(".")
    if figure == "r2_within" and "@" not in probe:
        resampled = differences_by_image(folder, comparison.first, arm, seeds, probe)
        if resampled is not None:
            values, what = resampled
            over = bootstrap_interval(values)
            entry |= {what: over.images, "bootstrap_low": over.low, "bootstrap_high": over.high}
    task = comparison.measure.partition(".")[0]
    named = f"{column.get('label', comparison.measure)} ({task})"
    return entry | {"sentence": claim(comparison.first, arm, named, differences, margin, p_adjusted, better)}


def differences_by_image(
    folder: Path, first: str, second: str, seeds: Sequence[int], probe: str
) -> tuple[Float64[np.ndarray, "seeds images"], Literal["images", "places"]] | None:
    """What each image adds to the difference in R² within images, times the number of images; None where not kept.

    R² = 1 - Σ residual / Σ total, and both arms have the same total: the mean over images of (residual of the second -
    residual of the first) / mean total is the difference of the two figures. Images of one place are no further
    evidence of each other: where places are known and hold several images, these are added up, so that the mean over
    places is the same figure.
    """
    rows, groups = [], []
    for seed in seeds:
        sums = [_sums(run_place(folder, arm, seed) / "probes" / f"{probe}.npz") for arm in (first, second)]
        if sums[0] is None or sums[1] is None or not np.array_equal(sums[0][1], sums[1][1], equal_nan=True):
            return None
        (one, total, group), (other, *_) = sums[0], sums[1]
        rows.append((other - one) / np.nanmean(total))  # nan for an image without depth
        groups.append(group)
    if any(not np.array_equal(group, groups[0]) for group in groups):
        return None
    values = np.stack(rows)
    known = ~np.isnan(values).any(0)
    names, of = np.unique(groups[0][known], return_inverse=True)
    if "" in names or len(names) in (known.sum(), 1):
        return values, "images"
    places = np.zeros((len(values), len(names)))
    np.add.at(places.T, of, values[:, known].T)
    return places * len(names) / known.sum(), "places"


def _sums(
    file: Path,
) -> tuple[Float64[np.ndarray, " images"], Float64[np.ndarray, " images"], np.ndarray] | None:
    """Sums of squares of each image, left over and in all, and where each was taken (empty texts: not known)."""
    if not file.is_file():
        return None
    with np.load(file) as arrays:
        if not all(name in arrays for name in SUMS):
            return None
        residual, total = (arrays[name].astype(np.float64) for name in SUMS)
        return residual, total, arrays["group"] if "group" in arrays else np.full(len(total), "")


def lines(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """The claims as a list in Markdown, with the bootstrap's interval where there is one."""
    return [
        f"- {each['sentence']}"
        + "".join(
            f" Over {each[what]} {what} as well (bootstrap of seeds and {what}): {each['bootstrap_low']:.3f} to "
            f"{each['bootstrap_high']:.3f}."
            for what in ("images", "places")
            if what in each
        )
        for each in claims
    ]
