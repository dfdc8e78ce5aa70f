"""What may be claimed of two arms of a study, in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from depthjepa.faults import BadInput
from depthjepa.study.inference import (
    LARGEST_EFFECT,
    Differences,
    Interval,
    check_p,
    equivalence,
    paired_interval,
    required_seeds,
    tail,
)

SMALLEST_P = 1e-9  # to reckon sizes with
MOST_SEEDS = 1000  # beyond which a sentence names no number


def claim(
    first: str,
    second: str,
    measure: str,
    differences: Differences,
    margin: float,
    p_adjusted: float,
    better: Literal["higher", "lower"] = "higher",
    level: float = 0.95,
) -> str:
    """Say in one sentence what may be claimed of two arms: better, worse, equivalent, or nothing.

    `differences` are first minus second, in the units of `measure` and `margin`. A difference is claimed where the
    adjusted p is below 1 − level and the t interval leaves out zero; equivalence where the two one-sided tests hold,
    which no correction enters; both are said where both hold. Where neither does, the sentence names the largest
    difference that the interval leaves open, and how many seeds would find a true difference of the size seen with
    80 % power, at the level that the correction leaves for it. That number follows from a difference and a deviation
    that are themselves uncertain. Where the interval leaves out zero and all differences are of one sign, p is as small
    as so few seeds can give: then that is said, and how many it takes.

    Raises:
        BadInput: as `equivalence`; a p outside [0, 1], or a `better` that is neither higher nor lower.
    """
    if better not in ("higher", "lower"):
        raise BadInput(f"better {better!r}: give 'higher' or 'lower'")
    check_p(p_adjusted)
    interval, within = paired_interval(differences, level), equivalence(differences, margin, level)
    rejects, leaves_out_zero = p_adjusted < 1 - level, interval.low > 0 or interval.high < 0
    direction = 1 if better == "higher" else -1
    verdict = "better" if direction * interval.mean > 0 else "worse"
    named = measure if better == "higher" else f"{measure} (lower is better)"
    number = _Numbers((interval.high - interval.low) / 2 or abs(interval.mean))
    narrow = f"{within.level * 100:g} % interval {number(within.low)} to {number(within.high)}, within the margin"
    seen = (
        f"the mean difference is {number(interval.mean)} ({level * 100:g} % interval {number(interval.low)} to "
        f"{number(interval.high)}, {interval.n} paired seeds, adjusted {_p_text(p_adjusted)}"
    )
    if rejects and leaves_out_zero and within.holds:
        return (
            f"{first} is {verdict} than {second} in {named}, but by so little that the two are equivalent within "
            f"±{margin:g}: {seen}; {narrow})."
        )
    if rejects and leaves_out_zero:
        return f"{first} is {verdict} than {second} in {named}: {seen})."
    if within.holds:
        return f"{first} and {second} are equivalent in {named} within ±{margin:g}: {seen}; {narrow})."
    furthest = max(interval.low, interval.high, key=abs)
    side = "an advantage" if direction * furthest > 0 else "a disadvantage"
    contrary = ", although the interval holds zero" if rejects else ""
    return (
        f"It cannot be told whether {first} is better than {second} in {named}, worse, or equivalent within "
        f"±{margin:g}: {seen}{contrary}), {side} of {first} as large as {number(abs(furthest))} is not ruled out, and "
        f"{_seeds_text(interval, p_adjusted, one_sign=len(set(np.sign(differences))) == 1)}."
    )


def _fewest_seeds(seeds: int, p_adjusted: float, level: float) -> int:
    """Paired seeds from which differences of one sign are below the level, by the correction that these had."""
    correction = p_adjusted * 2 ** (seeds - 1)  # of the smallest p that signs can give
    return max(seeds + 1, 1 + math.ceil(math.log2(correction / (1 - level))))


def _seeds_text(interval: Interval, p_adjusted: float, *, one_sign: bool) -> str:
    if interval.deviation == 0:
        return "how many seeds would be needed cannot be reckoned from differences that are all equal"
    if one_sign and (interval.low > 0 or interval.high < 0):
        fewest = _fewest_seeds(interval.n, p_adjusted, interval.level)
        return (
            f"the differences are of one sign in all seeds, which is as much as so few can show: after this correction "
            f"it takes about {fewest} paired seeds"
        )
    effect = min(abs(interval.mean) / interval.deviation, LARGEST_EFFECT)
    p = 2 * tail(interval, abs(interval.mean))
    # What the correction made of this p, it would make of the next study's: the single test has to meet less.
    alpha = (1 - interval.level) * min(1.0, max(p, SMALLEST_P) / max(p_adjusted, SMALLEST_P))
    # A mean of no more than its standard error with so many seeds is not found with them.
    within_reach = effect * math.sqrt(MOST_SEEDS) > 1
    # No fewer than there were, which did not do: p may be of another test than the t test that is reckoned with.
    seeds = max(interval.n + 1, required_seeds(effect, level=1 - alpha)) if within_reach else math.inf
    count = f"about {seeds}" if seeds <= MOST_SEEDS else f"more than {MOST_SEEDS}"
    return f"to find a difference of the size seen in four of five studies would take {count} paired seeds"


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Write numbers with as many decimals as show two digits of the precision."""

    precision: float

    def __call__(self, value: float) -> str:
        decimals = 3 if self.precision == 0 else min(12, max(0, 1 - math.floor(math.log10(self.precision))))
        return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")  # + 0.0: no −0


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
