"""Statistics of paired differences: they agree with scipy and with worked examples, and hold their levels."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from depthjepa.faults import BadInput
from depthjepa.study.inference import (
    bootstrap_interval,
    equivalence,
    holm,
    in_sequence,
    non_inferiority,
    paired_interval,
    required_seeds,
    sign_flip,
)
from depthjepa.study.wording import claim

SEEDS = 8
FIRST = np.array([0.412, 0.398, 0.431, 0.405, 0.420, 0.388, 0.417, 0.409])
SECOND = np.array([0.391, 0.392, 0.402, 0.399, 0.391, 0.379, 0.408, 0.380])
DIFFERENCES = FIRST - SECOND


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_interval_is_that_of_scipys_t_tests(level):
    found = paired_interval(DIFFERENCES, level)
    one = stats.ttest_1samp(DIFFERENCES, 0.0).confidence_interval(level)
    pair = stats.ttest_rel(FIRST, SECOND).confidence_interval(level)
    np.testing.assert_allclose([found.low, found.high], one, rtol=1e-12)
    np.testing.assert_allclose([found.low, found.high], pair, rtol=1e-12)
    assert (found.n, found.level) == (SEEDS, level)
    assert found.mean == pytest.approx(FIRST.mean() - SECOND.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(np.std(DIFFERENCES, ddof=1), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-3])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_differences_give_an_interval_of_width_zero(value, n):
    found = paired_interval(np.full(n, value))
    assert (found.mean, found.deviation, found.low, found.high) == (value, 0.0, value, value)


def test_the_t_interval_holds_the_truth_95_times_of_100():
    intervals = [paired_interval(each + 0.3) for each in normal(4000, SEEDS, seed=1)]
    assert 0.94 < np.mean([each.low <= 0.3 <= each.high for each in intervals]) < 0.96


@pytest.mark.parametrize("n", [2, 3, 6, 8, 16])
@pytest.mark.parametrize("value", [0.1, -1e-9, 1e9])
def test_all_of_one_sign_gives_the_smallest_p(n, value):
    same = np.full(n, value)
    spread = value * np.linspace(0.7, 1.3, n)
    assert sign_flip(same) == sign_flip(spread) == 2 / 2**n


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_p_is_that_of_scipys_permutation_test(seed):
    differences = normal(9, seed=seed) + 0.4
    other = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences) == other.pvalue


def test_ties_count_whatever_the_rounding():
    # 0.1 + 0.2 - 0.3 is not 0 in binary. By hand: of the 8 sums of ±1 ±2 ±3 all reach 0; of ±1 ±2 ±4, four reach |5|.
    assert sign_flip(np.array([0.1, 0.2, -0.3])) == 1.0
    assert sign_flip(np.array([-0.1, 0.2, 0.4])) == sign_flip(np.array([-1.0, 2.0, 4.0])) == 4 / 8
    assert sign_flip(np.zeros(5)) == 1.0
    tied = np.array([3, -1, 2, 2, -2, 5, 1, 4])
    sums = [abs(np.dot(tied, signs)) for signs in itertools.product((-1, 1), repeat=len(tied))]
    by_integers = np.mean(np.array(sums) >= tied.sum())
    for scale in (1.0, 0.1, 1 / 3, 1e-7):
        assert sign_flip(tied * scale) == by_integers


def test_no_level_is_exceeded_over_all_signs():
    magnitudes = np.array([0.1, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 21.0])
    found = np.array([sign_flip(magnitudes * signs) for signs in itertools.product((-1.0, 1.0), repeat=SEEDS)])
    for level in np.unique(found):
        assert (found <= level).mean() <= level


@pytest.mark.parametrize("n", [SEEDS, 17])
def test_false_positives_stay_below_the_level(n):
    # Symmetric, but neither normal nor of equal spread.
    differences = normal(2000, n, seed=3) ** 3 * np.linspace(0.2, 2.0, n)
    p = np.array([sign_flip(each, draws=500) for each in differences])
    for level in (0.05, 0.2):
        error = np.sqrt(level * (1 - level) / len(p))
        assert (p <= level).mean() < level + 3 * error


def test_many_differences_are_drawn_and_repeatable():
    differences = normal(40, seed=5) + 0.3
    p = sign_flip(differences)
    assert p == sign_flip(differences) != sign_flip(differences, seed=1)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, rel=0.1)
    assert sign_flip(np.ones(40), draws=999) == 1 / 1000
    assert sign_flip(np.zeros(40), draws=999) == 1.0


def test_seeds_alone_are_drawn_as_by_scipy():
    found = bootstrap_interval(DIFFERENCES, draws=100_000)
    other = stats.bootstrap((DIFFERENCES,), np.mean, method="percentile", n_resamples=100_000, rng=1)
    np.testing.assert_allclose([found.low, found.high], other.confidence_interval, atol=0.01 * DIFFERENCES.std())
    assert found.mean == DIFFERENCES.mean()
    assert (found.seeds, found.images) == (SEEDS, None)


def test_the_bootstrap_is_repeatable():
    for figures in (normal(SEEDS), normal(SEEDS, 20)):
        assert bootstrap_interval(figures) == bootstrap_interval(figures) != bootstrap_interval(figures, seed=1)


def test_images_are_shared_by_the_seeds():
    # What images alone decide is as uncertain as so many images leave it: more seeds are no more images.
    per_image = normal(50, seed=2)
    found = bootstrap_interval(np.tile(per_image, (SEEDS, 1)), draws=50_000)
    other = stats.bootstrap((per_image,), np.mean, method="percentile", n_resamples=50_000, rng=1)
    np.testing.assert_allclose([found.low, found.high], other.confidence_interval, atol=0.005)
    assert found.high - found.low == pytest.approx(2 * 1.96 * per_image.std() / np.sqrt(50), rel=0.03)


def test_without_variation_over_images_only_seeds_count():
    found = bootstrap_interval(np.repeat(DIFFERENCES[:, None], 20, axis=1))
    alone = bootstrap_interval(DIFFERENCES)
    np.testing.assert_allclose([found.mean, found.low, found.high], [alone.mean, alone.low, alone.high], rtol=1e-12)


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    figures = normal(SEEDS, 30, seed=4)
    whole, flips = bootstrap_interval(figures), sign_flip(figures.mean(0), draws=5000)
    monkeypatch.setattr("depthjepa.study.inference.CHUNK", 1000)
    parts = bootstrap_interval(figures)
    np.testing.assert_allclose([parts.low, parts.high], [whole.low, whole.high], rtol=1e-9)
    assert sign_flip(figures.mean(0), draws=5000) == flips


def test_figures_that_are_missing_are_left_out():
    figures = normal(SEEDS, 40, seed=6)
    none = np.full((SEEDS, 3), np.nan)
    assert bootstrap_interval(np.hstack([figures, none])) == bootstrap_interval(figures)
    assert bootstrap_interval(np.hstack([figures, none])).images == 40
    holes = np.where(np.random.default_rng(0).random(figures.shape) < 0.3, np.nan, figures)
    found = bootstrap_interval(holes)
    assert found.mean == pytest.approx(np.mean([row[~np.isnan(row)].mean() for row in holes]), rel=1e-12)
    assert found.low < found.mean < found.high
    # A seed's own constant survives any pattern of holes.
    constant = np.where(np.isnan(holes), np.nan, DIFFERENCES[:, None])
    alone = bootstrap_interval(DIFFERENCES)
    found = bootstrap_interval(constant)
    np.testing.assert_allclose([found.low, found.high], [alone.low, alone.high], rtol=1e-9)


def coverage(seeds: float, images: float, both: float, repetitions: int = 800) -> tuple[float, float]:
    """How often the bootstrap and the t interval hold 0, from the standard errors that each source gives the mean."""
    count, generator, hits = 50, np.random.default_rng(12), []
    for number in range(repetitions):
        figures = seeds * np.sqrt(SEEDS) * generator.normal(size=(SEEDS, 1))
        if images or both:
            figures = figures + images * np.sqrt(count) * generator.normal(size=(1, count))
            figures = figures + both * np.sqrt(SEEDS * count) * generator.normal(size=(SEEDS, count))
        drawn = bootstrap_interval(figures if images or both else figures[:, 0], draws=500, seed=number)
        student = paired_interval(figures.mean(axis=1))
        hits.append([drawn.low <= 0 <= drawn.high, student.low <= 0 <= student.high])
    of_bootstrap, of_student = np.mean(hits, axis=0)
    return float(of_bootstrap), float(of_student)


def test_the_bootstrap_of_eight_seeds_is_too_narrow():
    """In 60,000 repetitions 0.885; 2000 have a standard error of 0.007."""
    of_bootstrap, of_student = coverage(seeds=1, images=0, both=0, repetitions=2000)
    assert 0.86 < of_bootstrap < 0.91
    assert 0.935 < of_student < 0.965


@pytest.mark.parametrize(
    ("seeds", "images", "both", "lowest", "highest"),
    [(1, 1, 0, 0.90, 0.95), (0, 1, 0, 0.92, 0.965), (0, 0, 1, 0.99, 1.0)],
)
def test_the_bootstrap_covers_other_images_too(seeds, images, both, lowest, highest):
    """In 24,000 repetitions 0.93, 0.94 and 0.998; 800 have a standard error of 0.009 about the first two."""
    of_bootstrap, of_student = coverage(seeds, images, both)
    assert lowest < of_bootstrap <= highest
    if images:
        assert of_student < 0.9


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04, and none may fall below one before.
    np.testing.assert_allclose(holm([0.02, 0.04, 0.01, 0.03]), [0.06, 0.06, 0.04, 0.06], rtol=1e-12)
    np.testing.assert_allclose(holm([0.9, 0.5, 0.008]), [1.0, 1.0, 0.024], rtol=1e-12)
    np.testing.assert_array_equal(holm([0.3]), [0.3])
    assert len(holm([])) == 0


def test_a_sequence_stops_where_a_test_fails():
    np.testing.assert_array_equal(in_sequence([0.01, 0.04, 0.03]), [0.01, 0.04, 0.04])
    np.testing.assert_array_equal(in_sequence([0.9, 0.001]), [0.9, 0.9])  # not tested
    np.testing.assert_array_equal(in_sequence([0.3]), [0.3])
    assert len(in_sequence([])) == 0


@pytest.mark.parametrize("correct", [holm, in_sequence])
def test_false_claims_are_as_rare_as_the_level_says(correct):
    """Of studies without a true difference whose five comparisons share an arm, at most one in twenty claims one."""
    others, shared = np.random.default_rng(5).normal(size=(3000, 5)), np.random.default_rng(6).normal(size=(3000, 1))
    p = 2 * stats.norm.sf(np.abs(others + shared) / np.sqrt(2))
    claimed = np.mean([(correct(row) < 0.05).any() for row in p])
    assert 0.01 < claimed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.parametrize("seed", range(20))
def test_holm_rejects_what_its_steps_reject(seed):
    generator = np.random.default_rng(seed)
    p = np.round(generator.random(6) ** 3, 2)  # with ties
    for level in (0.01, 0.0501, 0.2001):
        rejected = set()
        for step, number in enumerate(np.argsort(p)):
            if p[number] > level / (len(p) - step):
                break
            rejected.add(number)
        assert {number for number, each in enumerate(holm(p)) if each <= level} == rejected


@pytest.mark.parametrize("margin", [0.005, 0.016, 0.02, 0.03])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_equivalence_is_two_one_sided_tests(margin, sign, level):
    differences = sign * DIFFERENCES
    below = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    found = equivalence(differences, margin, level)
    assert found.p == pytest.approx(max(below, above), rel=1e-9)
    assert found.holds == (max(below, above) < 1 - level)
    assert found.level == pytest.approx(2 * level - 1)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(2 * level - 1)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)

    one_sided = non_inferiority(differences, margin, level)
    assert one_sided.p == pytest.approx(below, rel=1e-9)
    assert one_sided.holds == (below < 1 - level)
    bound = stats.ttest_1samp(differences, 0.0, alternative="greater").confidence_interval(level).low
    assert one_sided.low == pytest.approx(bound, rel=1e-12)
    assert one_sided.holds or not found.holds


def test_equal_differences_are_equivalent_inside_the_margin_only():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside, on, outside = (equivalence(np.full(4, value), 0.5) for value in (0.25, 0.5, -0.75))
    assert (inside.p, inside.holds) == (0.0, True)
    assert (on.p, on.holds) == (0.5, False)
    assert (outside.p, outside.holds) == (1.0, False)
    assert non_inferiority(np.full(4, 0.75), 0.5).holds


def test_equivalence_is_claimed_at_most_5_times_of_100_on_the_margin():
    found = [equivalence(each + 1.0, 1.0).holds for each in normal(2000, SEEDS, seed=8)]
    assert np.mean(found) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(found))


@pytest.mark.parametrize(
    ("seeds", "effect"), [(3, 3.26), (4, 2.13), (5, 1.68), (6, 1.43), (8, 1.16), (10, 1.00), (16, 0.75)]
)
def test_seeds_and_the_effects_that_they_find(seeds, effect):
    """The effect, to two decimals, is the least that so many seeds find with 80 % power."""
    assert required_seeds(effect + 0.005) == seeds
    assert required_seeds(effect - 0.005) == seeds + 1
    assert required_seeds(-effect - 0.005) == seeds


@pytest.mark.parametrize(("effect", "level", "power"), [(1.16, 0.95, 0.8), (0.8, 0.9, 0.9), (1.5, 0.99, 0.7)])
def test_so_many_seeds_have_the_power_and_one_fewer_has_not(effect, level, power):
    seeds = required_seeds(effect, power, level)

    def share(n: int) -> float:
        samples = normal(20_000, n, seed=9) + effect
        return float((stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 1 - level).mean())

    assert share(seeds) > power - 0.01
    assert share(seeds - 1) < power + 0.01
    assert required_seeds(effect, power, 0.995) > seeds


@pytest.mark.parametrize(("effect", "seeds"), [(10.0, 3), (0.01, 78_491)])
def test_the_largest_and_smallest_effects(effect, seeds):
    found = required_seeds(effect)
    assert found == seeds
    # Many differences are as good as normal: (1.960 + 0.842)² / effect² and about 2 more.
    assert effect > 1 or found == pytest.approx((2.8016 / effect) ** 2 + 2, abs=3)


def sentence(mean: float, deviation: float, margin: float, p: float, better: str = "higher", n: int = SEEDS) -> str:
    """The claim of differences that have exactly this mean and deviation."""
    shape = np.linspace(-1.0, 1.0, n)
    differences = mean + deviation * shape / shape.std(ddof=1)
    return claim("guided", "unguided", "R² within images", differences, margin, p, better)


def test_each_claim_in_its_own_words():
    # 2.3646 and 1.8946 are Student's t at 97.5 % and 95 % with 7 degrees of freedom: half-widths 0.0084 and 0.0067.
    assert sentence(0.05, 0.01, 0.02, 0.0234) == (
        "guided is better than unguided in R² within images: the mean difference is 0.0500 (95 % interval 0.0416 to "
        "0.0584, 8 paired seeds, adjusted p = 0.023)."
    )
    assert sentence(-0.05, 0.01, 0.02, 0.0001) == (
        "guided is worse than unguided in R² within images: the mean difference is −0.0500 (95 % interval −0.0584 to "
        "−0.0416, 8 paired seeds, adjusted p < 0.001)."
    )
    assert sentence(0.001, 0.01, 0.02, 1.0) == (
        "guided and unguided are equivalent in R² within images within ±0.02: the mean difference is 0.0010 (95 % "
        "interval −0.0074 to 0.0094, 8 paired seeds, adjusted p = 1.000; 90 % interval −0.0057 to 0.0077, within the "
        "margin)."
    )
    assert sentence(0.0125, 0.01, 0.02, 0.04) == (
        "guided is better than unguided in R² within images, but by so little that the two are equivalent within "
        "±0.02: the mean difference is 0.0125 (95 % interval 0.0041 to 0.0209, 8 paired seeds, adjusted p = 0.040; "
        "90 % interval 0.0058 to 0.0192, within the margin)."
    )
    assert sentence(0.02, 0.04, 0.02, 0.2) == (
        "It cannot be told whether guided is better than unguided in R² within images, worse, or equivalent within "
        "±0.02: the mean difference is 0.020 (95 % interval −0.013 to 0.053, 8 paired seeds, adjusted p = 0.200), an "
        "advantage of guided as large as 0.053 is not ruled out, and to find a difference of the size seen in four of "
        f"five studies would take about {required_seeds(0.5)} paired seeds."
    )


def test_lower_may_be_better():
    assert sentence(-0.05, 0.01, 0.02, 0.01, "lower").startswith(
        "guided is better than unguided in R² within images (lower is better): the mean difference is −0.0500 "
    )
    assert "guided is worse than unguided" in sentence(0.05, 0.01, 0.02, 0.01, "lower")
    assert "a disadvantage of guided as large as 0.053" in sentence(0.02, 0.04, 0.02, 0.3, "lower")
    assert "an advantage of guided as large as 0.053" in sentence(-0.02, 0.04, 0.02, 0.3, "lower")


def seeds_named(words: str) -> int:
    found = re.search(r"about (\d+) paired seeds", words)
    assert found, words
    return int(found[1])


def test_a_difference_lost_to_the_correction_asks_for_more_seeds():
    # The interval leaves out zero, and the test alone rejects: p = 0.027 by t.
    shape = np.linspace(-1.0, 1.0, SEEDS)
    p = stats.ttest_1samp(1.0 + shape / shape.std(ddof=1), 0.0).pvalue
    assert seeds_named(sentence(1.0, 1.0, 0.1, 3 * p)) == required_seeds(1.0, level=1 - 0.05 / 3) > SEEDS
    # Four seeds of one sign: their least p by signs is 0.125, however small it is by t.
    assert seeds_named(sentence(1.0, 0.01, 0.1, 0.125, n=4)) > 4
    assert seeds_named(sentence(1.0, 1e-9, 0.1, 0.125, n=4)) > 4


def test_six_seeds_of_one_sign_and_four_comparisons_say_that_it_takes_eight():
    words = sentence(0.168, 0.0035, 0.02, 4 * 2 / 2**6, n=6)
    assert words.startswith("It cannot be told") and "of one sign in all seeds" in words
    assert seeds_named(words) == 8 and 4 * 2 / 2**8 < 0.05 < 4 * 2 / 2**7


def test_a_test_at_odds_with_the_interval_claims_nothing():
    words = sentence(0.02, 0.04, 0.02, 0.03)
    assert words.startswith("It cannot be told")
    assert "adjusted p = 0.030, although the interval holds zero)" in words


def test_differences_too_small_or_too_equal_to_reckon_with():
    assert sentence(0.0, 1.0, 0.1, 1.0).endswith("would take more than 1000 paired seeds.")
    assert sentence(0.04, 1.0, 0.1, 1.0).endswith("would take more than 1000 paired seeds.")
    words = claim("a", "b", "accuracy", np.full(3, 0.5), 0.1, 0.25)
    assert words.startswith("It cannot be told")
    assert "interval 0.50 to 0.50" in words
    assert words.endswith("cannot be reckoned from differences that are all equal.")
    assert claim("a", "b", "accuracy", np.zeros(3), 0.1, 1.0).startswith("a and b are equivalent in accuracy")
    assert "mean difference is 0.000 (" in claim("a", "b", "accuracy", np.zeros(3), 0.1, 1.0)


@pytest.mark.parametrize("seed", range(30))
def test_every_claim_is_one_sentence_and_says_what_holds(seed):
    generator = np.random.default_rng(seed)
    differences = generator.normal(generator.normal(), generator.uniform(0.1, 2.0), size=generator.integers(2, 12))
    p, margin = sign_flip(differences), float(generator.uniform(0.05, 2.0))
    words = claim("guided", "unguided", "accuracy", differences, margin, p)
    interval = paired_interval(differences)
    differs = p < 0.05 and not interval.low <= 0 <= interval.high
    within = equivalence(differences, margin).holds
    assert words.endswith(".") and ". " not in words and "nan" not in words
    assert ("guided is better than" in words and "told" not in words) == (differs and interval.mean > 0)
    assert ("guided is worse than" in words) == (differs and interval.mean < 0)
    assert (" are equivalent " in words) == within
    assert words.startswith("It cannot be told") == (not differs and not within)
    assert f"{interval.n} paired seeds" in words


ONE = np.array([0.1])
GAP = np.array([0.1, np.nan, 0.3])
GOOD = np.array([0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    "statistic",
    [
        paired_interval,
        sign_flip,
        bootstrap_interval,
        lambda differences: equivalence(differences, 0.1),
        lambda differences: non_inferiority(differences, 0.1),
        lambda differences: claim("a", "b", "accuracy", differences, 0.1, 0.5),
    ],
)
def test_too_few_seeds_and_gaps_are_refused(statistic: Callable[[np.ndarray], object]):
    with pytest.raises(BadInput, match="1 paired differences: a deviation takes 2 seeds or more"):
        statistic(ONE)
    with pytest.raises(BadInput, match="0 paired differences"):
        statistic(ONE[:0])
    with pytest.raises(BadInput, match="the difference in row 1 is nan"):
        statistic(GAP)
    with pytest.raises(BadInput, match="the difference in row 0 is inf"):
        statistic(np.array([np.inf, 1.0]))


@pytest.mark.parametrize("margin", [0.0, -0.1, np.nan, np.inf])
def test_margins_that_are_none_are_refused(margin):
    for judge in (equivalence, non_inferiority):
        with pytest.raises(BadInput, match="give a positive number"):
            judge(GOOD, float(margin))
    with pytest.raises(BadInput, match="give a positive number"):
        claim("a", "b", "accuracy", GOOD, float(margin), 0.5)


def lonely(known: int, images: int) -> np.ndarray:
    """Figures of three seeds, of the last for a few images only."""
    figures = normal(3, images)
    figures[2, known:] = np.nan
    return figures


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: paired_interval(GOOD, 1.0), "level 1.0: give a number between 0 and 1, such as 0.95"),
        (lambda: bootstrap_interval(GOOD, 95.0), "level 95.0"),
        (lambda: bootstrap_interval(GOOD, draws=0), "0 draws of the bootstrap"),
        (lambda: sign_flip(GOOD, draws=0), "0 draws of signs"),
        (lambda: bootstrap_interval(normal(1, 20)), "1 paired differences"),
        (lambda: bootstrap_interval(normal(3, 1)), "figures of a single image"),
        (lambda: bootstrap_interval(lonely(0, 9)), "the seed in row 2 has a figure of no image"),
        (lambda: bootstrap_interval(lonely(2, 90)), "the seed in row 2 has figures of only 2 of 90 images"),
        (lambda: bootstrap_interval(np.array([[1.0, np.inf], [1.0, 2.0]])), "row 0 on image 1 is infinite"),
        (lambda: holm([0.1, 1.1]), "a p of 1.1"),
        (lambda: in_sequence([0.1, 1.1]), "a p of 1.1"),
        (lambda: holm([0.1, float("nan")]), "a p of nan"),
        (lambda: equivalence(GOOD, 0.1, 0.5), "level 0.5 of one-sided tests"),
        (lambda: required_seeds(0.0), "an effect of 0.0 deviations of the paired differences: give 0.01 to 10"),
        (lambda: required_seeds(float("nan")), "an effect of nan"),
        (lambda: required_seeds(1.0, power=1.0), "power 1.0: give a number between 0 and 1, such as 0.8"),
        (lambda: required_seeds(1.0, power=0.04), "power 0.04 is reached without any effect"),
        (lambda: required_seeds(1.0, level=0.0), "level 0.0"),
        (lambda: claim("a", "b", "accuracy", GOOD, 0.1, -0.1), "a p of -0.1"),
    ],
)
def test_what_has_no_meaning_is_refused(call, said):
    with pytest.raises(BadInput, match=said):
        call()
