"""What may be claimed from a study whose arms share seeds.

Runs of a seed start from the same weights and see the same images, order and masks in every arm, so that two arms are
compared by their differences, seed by seed: `differences` are always first arm minus second. A claim rests on the
t interval of their mean (`paired_interval`), on a test that asks for symmetry alone (`sign_flip`), corrected where
several arms are compared (`holm`, `in_sequence`), and on a margin fixed beforehand, within which two arms count as
equivalent (`equivalence`), so that finding no difference can be a result too. `wording.claim` says it in a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from depthjepa.faults import BadInput

EXACT_SEEDS = 16  # 65,536 patterns of signs
ROUNDING = 1e-12  # sums that differ by less than this share of the sum of magnitudes are the same sum
CHUNK = 2**22  # numbers drawn at once: 32 MiB
SMALLEST_EFFECT, LARGEST_EFFECT = 0.01, 10.0  # deviations

Differences = Float64[np.ndarray, " seeds"]


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean and sample deviation (n − 1) of n paired differences, and the interval of the true mean at a level."""

    mean: float
    deviation: float
    n: int
    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """Mean difference and its percentile interval; `images` with a figure, None where seeds alone were drawn."""

    mean: float
    seeds: int
    images: int | None
    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether the true mean difference lies within ±margin.

    `p` is the larger of the two one-sided tests'; `low` and `high` bound the interval of the mean at `level` (0.9 for
    tests at 5 %), and `holds` says that it lies within the margin.
    """

    p: float
    margin: float
    low: float
    high: float
    level: float
    holds: bool


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether the first arm is worse by less than the margin: `holds` says that the bound `low` is above −margin."""

    p: float
    margin: float
    low: float
    level: float
    holds: bool


def paired_interval(differences: Differences, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of paired differences; of width zero where all are equal.

    Raises:
        BadInput: fewer than two differences, one that is not finite, or a level outside (0, 1).
    """
    from scipy.special import stdtrit  # every command imports this module, few need this

    _check_differences(differences)
    _check_share("level", level)
    n = len(differences)
    # Of equal numbers the mean may be another number, by rounding, and the deviation not zero.
    equal = bool((differences == differences[0]).all())
    mean = float(differences[0] if equal else differences.mean())
    deviation = 0.0 if equal else float(differences.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    return Interval(mean, deviation, n, mean - half, mean + half, level)


def sign_flip(differences: Differences, draws: int = 2**16, seed: int = 0) -> float:
    """Two-sided p of the mean difference, if each difference might as well have had the other sign.

    It asks no more than that differences are symmetric about zero where the arms do not differ. All 2ⁿ patterns of
    signs are counted for up to 16 differences: the smallest p is 2 / 2ⁿ, so that six seeds at least are needed for
    p < 0.05. Beyond that `draws` random patterns are, the observed one added, so that p is never 0 (Phipson and Smyth
    2010). `scipy.stats.permutation_test` counts the same, but takes sums for ties relative to the observed one, which
    fails where that is zero up to rounding.

    Raises:
        BadInput: fewer than two differences, one that is not finite, or no draws.
    """
    _check_differences(differences)
    if draws < 1:
        raise BadInput(f"{draws} draws of signs: give 1 or more")
    n = len(differences)
    least = abs(differences.sum()) - ROUNDING * np.abs(differences).sum()
    if n <= EXACT_SEEDS:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ differences) >= least).mean())
    generator = np.random.default_rng(seed)
    count = sum(
        int((np.abs((1.0 - 2.0 * generator.integers(2, size=(part, n))) @ differences) >= least).sum())
        for part in _parts(draws, n)
    )
    return (count + 1) / (draws + 1)


def bootstrap_interval(
    differences: Differences | Float64[np.ndarray, "seeds images"],
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> BootstrapInterval:
    """Percentile interval of the mean difference over other seeds and other images, by drawing both anew.

    `differences` has a figure for each seed, or for each seed and image, nan where an image gave none; the mean is
    that of the seeds' means over their images.

    Seeds and images are crossed, not nested: every seed was judged on the same images. An image that flatters one arm
    does so for all seeds, and drawing images separately for each seed would average that away, as if there had been
    `seeds` times as many. So each draw takes seeds with replacement and, independently, one set of images with
    replacement for all of them (the pigeonhole bootstrap; Owen 2007, Annals of Applied Statistics 1(2)). No bootstrap
    is exact for crossed factors (McCullagh 2000, Bernoulli 6(2)): this one counts what differs by seed and image
    together up to three times, which errs towards too wide, and that of seeds as (n − 1) / n of itself.

    Measured with 8 seeds, 50 images and normal differences, intervals at 95 % that hold the true mean:

        the mean's error comes from      this interval    t interval of the seeds' means
        seeds alone                      88.5 %           95 %
        seeds and images, equally        93 %             87 %
        images alone                     94 %             0 %
        seed and image together alone    above 99 %       95 %

    So for what other seeds would show on these images, which is how arms are compared, believe `paired_interval` of
    the seeds' means: this one is too narrow for few seeds. For what other images would show, the t interval says
    nothing, and this one is to be asked as well: claim no more than both allow.

    Raises:
        BadInput: fewer than two seeds or images, a figure that is infinite (or nan, without images), a level outside
            (0, 1), no draws, or a seed with so few figures that a draw of images held none.
    """
    _check_share("level", level)
    if draws < 1:
        raise BadInput(f"{draws} draws of the bootstrap: give 1 or more, best 10000")
    crossed = differences.ndim == 2
    if crossed:
        differences = _checked_figures(differences)
        by_seed = np.nanmean(differences, axis=1)
    else:
        by_seed = differences
    _check_differences(by_seed)
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(by_seed), size=(draws, len(by_seed)))
    means = by_seed[chosen] if not crossed else np.take_along_axis(_redrawn(differences, draws, generator), chosen, 1)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    images = differences.shape[1] if crossed else None
    return BootstrapInterval(float(by_seed.mean()), len(by_seed), images, float(low), float(high), level)


def _redrawn(
    differences: Float64[np.ndarray, "seeds images"], draws: int, generator: np.random.Generator
) -> Float64[np.ndarray, "draws seeds"]:
    """Mean of every seed over each draw of images."""
    images = differences.shape[1]
    known = ~np.isnan(differences)
    filled = np.where(known, differences, 0.0)
    means = []
    for part in _parts(draws, images):
        times = _times_drawn(generator.integers(images, size=(part, images))).astype(np.float64)
        figures = times @ known.T.astype(np.float64)
        if (without := ~(figures > 0).all(axis=0)).any():
            number = int(without.argmax())
            raise BadInput(
                f"the seed in row {number} has figures of only {known[number].sum()} of {images} images, and a draw of "
                "images held none of them: leave that seed out, or give one figure a seed"
            )
        means.append(times @ filled.T / figures)
    return np.concatenate(means)


def _times_drawn(numbers: Int64[np.ndarray, "draws images"]) -> Int64[np.ndarray, "draws images"]:
    """How often each of draws holds each image."""
    draws, images = numbers.shape
    places = numbers + images * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * images).reshape(draws, images)


def _parts(draws: int, width: int) -> Iterator[int]:
    """Sizes of the parts in which draws of so many numbers each are made."""
    most = max(1, CHUNK // width)
    for start in range(0, draws, most):
        yield min(most, draws - start)


def holm(p_values: Sequence[float] | Float64[np.ndarray, " comparisons"]) -> Float64[np.ndarray, " comparisons"]:
    """Holm's adjusted p of several comparisons, in the order given (Holm 1979).

    The chance that an adjusted p is at most α for any comparison without a true difference is at most α, however the
    tests depend on one another.

    Raises:
        BadInput: a p outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    for each in p:
        check_p(float(each))
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def in_sequence(p_values: Sequence[float] | Float64[np.ndarray, " comparisons"]) -> Float64[np.ndarray, " comparisons"]:
    """Adjusted p of comparisons that are tested one after the other, each only where all before it hold.

    The order is fixed before the data are seen (a fixed sequence: Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen
    2001). The chance of any false claim is kept as by Holm's correction, and the first comparisons pay nothing for the
    last ones: what is of less weight comes later, and is not tested once one before it fails.

    Raises:
        BadInput: a p outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    for each in p:
        check_p(float(each))
    return np.maximum.accumulate(p)


def equivalence(differences: Differences, margin: float, level: float = 0.95) -> Equivalence:
    """Two one-sided t tests, each at 1 − level, of the true mean difference lying within ±margin (Schuirmann 1987).

    They reject where the interval at 2 level − 1 (90 % for 0.95) lies within the margin, which is to be fixed before
    the differences are seen.

    Raises:
        BadInput: as `paired_interval`; a margin that is not positive and finite, or a level not above 0.5.
    """
    _check_margin(margin, level)
    interval = paired_interval(differences, 2 * level - 1)
    p = max(tail(interval, margin + interval.mean), tail(interval, margin - interval.mean))
    holds = -margin < interval.low and interval.high < margin
    return Equivalence(p, margin, interval.low, interval.high, interval.level, holds)


def non_inferiority(differences: Differences, margin: float, level: float = 0.95) -> NonInferiority:
    """One-sided t test, at 1 − level, of the first arm being worse by less than the margin.

    Larger differences are better; turn the signs where a lower measure is. The bound is one-sided, the lower end of
    the interval at 2 level − 1, so that arms that are equivalent are not inferior either; where a two-sided 95 %
    interval is to decide, as drug regulators ask (ICH E9), give level 0.975.

    Raises:
        BadInput: as `equivalence`.
    """
    _check_margin(margin, level)
    interval = paired_interval(differences, 2 * level - 1)
    return NonInferiority(tail(interval, margin + interval.mean), margin, interval.low, level, interval.low > -margin)


def tail(interval: Interval, excess: float) -> float:
    """P of the one-sided t test against a bound that the mean exceeds by `excess`."""
    from scipy.special import stdtr

    error = interval.deviation / math.sqrt(interval.n)
    if error == 0:
        return 0.5 if excess == 0 else float(excess < 0)
    return float(stdtr(interval.n - 1, -excess / error))


def required_seeds(effect_in_deviations: float, power: float = 0.8, level: float = 0.95) -> int:
    """Fewest seeds with which a two-sided paired t test at 1 − level finds an effect, and its sign, with this power.

    The effect is the true mean difference, in deviations of the paired differences; its sign does not matter.

    Raises:
        BadInput: an effect below 0.01 or above 10 deviations, where n is beyond any study or 2 or 3 whatever the
            effect (and the noncentral t distribution fails); power or level outside (0, 1), or power not above
            1 − level.
    """
    if not SMALLEST_EFFECT <= abs(effect_in_deviations) <= LARGEST_EFFECT:
        raise BadInput(
            f"an effect of {effect_in_deviations} deviations of the paired differences: give {SMALLEST_EFFECT} to "
            f"{LARGEST_EFFECT}"
        )
    _check_share("level", level)
    _check_share("power", power)
    if power <= 1 - level:
        raise BadInput(f"power {power} is reached without any effect at level {level}: give more, such as 0.8")
    enough = 2
    while _power(enough, effect_in_deviations, level) < power:
        enough *= 2
    too_few = enough // 2  # or 1, which no test can do with
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if _power(middle, effect_in_deviations, level) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def _power(seeds: int, effect: float, level: float) -> float:
    from scipy.stats import nct, t

    # The other tail is left out: a difference of the wrong sign finds nothing (and scipy's is nan where it is tiny).
    return float(nct.sf(t.ppf((1 + level) / 2, seeds - 1), seeds - 1, abs(effect) * math.sqrt(seeds)))


def _check_differences(differences: Differences) -> None:
    if len(differences) < 2:
        raise BadInput(f"{len(differences)} paired differences: a deviation takes 2 seeds or more, best 8")
    if not np.isfinite(differences).all():
        number = int((~np.isfinite(differences)).argmax())
        raise BadInput(f"the difference in row {number} is {differences[number]}: leave out seeds without a figure")


def _checked_figures(
    differences: Float64[np.ndarray, "seeds images"],
) -> Float64[np.ndarray, "seeds present"]:
    """Without the images that have no figure of any seed."""
    if np.isinf(differences).any():
        row, column = np.argwhere(np.isinf(differences))[0]
        raise BadInput(f"the difference of the seed in row {row} on image {column} is infinite: give nan for no figure")
    known = ~np.isnan(differences)
    if not known.any(axis=1).all():
        row = int((~known.any(axis=1)).argmax())
        raise BadInput(f"the seed in row {row} has a figure of no image: leave it out")
    present = differences[:, known.any(axis=0)]
    if present.shape[1] < 2:
        raise BadInput("figures of a single image: give 2 images or more, or one figure a seed")
    return present


def _check_margin(margin: float, level: float) -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise BadInput(f"a margin of {margin}: give a positive number in the units of the measure")
    if not 0.5 < level < 1:
        raise BadInput(f"level {level} of one-sided tests: give a number between 0.5 and 1, such as 0.95")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise BadInput(f"{name} {value}: give a number between 0 and 1, such as {0.95 if name == 'level' else 0.8}")


def check_p(p: float) -> None:
    if not 0 <= p <= 1:
        raise BadInput(f"a p of {p}: give numbers from 0 to 1")
