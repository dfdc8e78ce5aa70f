"""The ridge from sums against least squares on rows held in memory, and its folds against refits from scratch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa.evaluation import ridge
from depthjepa.evaluation.ridge import LinearMap, Ridge

IMAGES, PLACES, WIDTH, TARGETS, FOLDS = 30, 6, 5, 3, 4
FOLD = torch.arange(IMAGES) % FOLDS


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Tokens far from 0 with channels of several sizes, and targets that they partly tell."""
    tokens = (20 + noise(0, IMAGES, PLACES, width) * torch.logspace(-1, 1, width)).float()
    told = tokens.double() @ noise(1, width, TARGETS) / 10
    return tokens, told + noise(2, 1, PLACES, TARGETS) + noise(3, IMAGES, PLACES, TARGETS)


def masks(several: bool) -> Tensor:
    """Half of the targets, each for itself or all of a token together; none at one place of fold 0's images."""
    known = noise(4, IMAGES, PLACES, TARGETS if several else 1) > 0
    known[:, 2] = (FOLD > 0)[:, None]
    return known


def filled(tokens: Tensor, targets: Tensor, known: Tensor | None = None, batch: int = IMAGES) -> Ridge:
    found = Ridge()
    for start in range(0, len(tokens), batch):
        part = slice(start, start + batch)
        found.add(tokens[part], targets[part], FOLD[part], None if known is None else known[part])
    return found


def slow(tokens: Tensor, targets: Tensor, known: Tensor, strength: float, seen: Tensor | None = None) -> Tensor:
    """Predictions for `seen`, target by target, from least squares on the rows that are known and the penalty's."""
    known = known.expand_as(targets)
    mean, deviation = tokens.double().mean((0, 1)), tokens.double().std((0, 1), correction=0)
    z, judged = ((each.double() - mean) / deviation for each in (tokens, tokens if seen is None else seen))
    everything = targets[known].mean()
    found = []
    for target in range(targets.shape[2]):
        y, here = targets[..., target], known[..., target]
        offset = torch.stack(
            [y[here[:, place], place].mean() if here[:, place].any() else everything for place in range(y.shape[1])]
        )
        rows = torch.cat([z[here], torch.ones(int(here.sum()), 1, dtype=torch.float64)], 1)
        penalty = (strength * int(here.sum())) ** 0.5 * torch.eye(rows.shape[1], dtype=torch.float64)[:-1]
        wanted = torch.cat([(y - offset)[here], torch.zeros(len(penalty), dtype=torch.float64)])
        solution = np.linalg.lstsq(torch.cat([rows, penalty]).numpy(), wanted.numpy())[0]
        found.append(judged @ torch.from_numpy(solution[:-1]) + solution[-1] + offset)
    return torch.stack(found, 2)


def slow_centred(
    tokens: Tensor,
    targets: Tensor,
    known: Tensor,
    strength: float,
    seen: Tensor | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """The same of tokens less their place's mean, known or not; targets stay as they are, but for what is `given`."""
    known = known.expand_as(targets)
    given = torch.zeros_like(targets[:1]) if given is None else given
    mean = tokens.double().mean(0)
    deviation = (tokens.double() - mean).square().mean((0, 1)).sqrt()
    z, judged = ((each.double() - mean) / deviation for each in (tokens, tokens if seen is None else seen))
    found = []
    for target in range(targets.shape[2]):
        here = known[..., target]
        rows = torch.cat([z[here], torch.ones(int(here.sum()), 1, dtype=torch.float64)], 1)
        penalty = (strength * int(here.sum())) ** 0.5 * torch.eye(rows.shape[1], dtype=torch.float64)[:-1]
        wanted = (targets - given)[..., target][here]
        solution = np.linalg.lstsq(
            torch.cat([rows, penalty]).numpy(), np.concatenate([wanted.numpy(), np.zeros(len(penalty))])
        )[0]
        found.append(judged @ torch.from_numpy(solution[:-1]) + solution[-1])
    return torch.stack(found, 2) + given


def place_means(targets: Tensor, known: Tensor) -> Tensor:
    """Mean target of every place, and the mean of all where none is known."""
    known = known.expand_as(targets)
    counts = known.sum(0)
    sums = torch.where(known, targets, 0).sum(0)
    return torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum() / counts.sum())


def deviations() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that are unlike from place to place, targets near 0 of which one fold has higher ones, what is known.

    Their mean at a place is not 0: what is taken from them is a mean map, and each image's own mean as well.
    """
    tokens, targets = samples()
    tokens = tokens + 5 * noise(5, 1, PLACES, WIDTH).float()
    targets = targets + 3 * (FOLD == 1)[:, None, None]
    known = masks(several=True)
    return tokens, targets - place_means(targets, known) + noise(7, 1, PLACES, TARGETS) / 3, known


def centred(tokens: Tensor, targets: Tensor, known: Tensor, strengths: tuple[float, ...] = ridge.STRENGTHS) -> Ridge:
    found = Ridge(strengths, centred=True)
    found.add(tokens, targets, FOLD, known)
    return found


def close(found: LinearMap, other: LinearMap, tokens: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found.predict(tokens), other.predict(tokens), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("strength", [1e-4, 0.3, 10.0])
def test_it_is_least_squares_with_a_penalty_on_standardised_tokens(several: bool, strength: float) -> None:
    (tokens, targets), known = samples(), masks(several)
    found = filled(tokens, targets, known).solve(strength)
    torch.testing.assert_close(found.predict(tokens), slow(tokens, targets, known, strength), rtol=1e-8, atol=1e-8)


def test_without_places_of_its_own_it_is_a_ridge_with_an_intercept() -> None:
    tokens, targets = samples()
    rows, wanted = tokens.flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None]
    found = Ridge()
    found.add(rows, wanted, torch.zeros(len(rows)).long())
    z = (rows - rows.double().mean(0)) / rows.double().std(0, correction=0)
    centred = (wanted - wanted.mean(0))[:, 0]
    gram = z[:, 0].T @ z[:, 0] / len(rows) + 0.3 * torch.eye(WIDTH, dtype=torch.float64)
    expected = z[:, 0] @ torch.linalg.solve(gram, z[:, 0].T @ centred / len(rows)) + wanted.mean(0)
    torch.testing.assert_close(found.solve(0.3).predict(tokens), expected.view_as(targets), rtol=1e-9, atol=1e-9)


def test_with_one_deviation_channels_keep_their_sizes() -> None:
    tokens, targets = samples()
    centred = (tokens.double() - tokens.double().mean((0, 1))).flatten(0, 1)
    deviations = (targets - targets.mean(0)).flatten(0, 1)
    gram = centred.T @ centred
    penalty = 0.2 * gram.diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)
    expected = (centred @ torch.linalg.solve(gram + penalty, centred.T @ deviations)).view_as(targets)
    (found,) = filled(tokens, targets).without().solve([0.2], shared=True)
    torch.testing.assert_close(found.predict(tokens), expected + targets.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("several", [False, True])
def test_batch_by_batch_is_all_at_once(several: bool) -> None:
    (tokens, targets), known = samples(), masks(several)
    once = filled(tokens, targets, known)
    for batch in (1, 7):
        found = filled(tokens, targets, known, batch)
        close(found.solve(1e-3), once.solve(1e-3), tokens)
        assert found.choose() == once.choose()
    # Batches without a sample add nothing, and none of them sets the centre.
    empty = Ridge()
    empty.add(tokens[:0], targets[:0], FOLD[:0], known[:0])
    assert not empty.folds
    empty.add(tokens, targets, FOLD, known)
    close(empty.solve(1e-3), once.solve(1e-3), tokens)


def test_the_error_is_that_of_the_predictions() -> None:
    (tokens, targets), known = samples(), masks(several=True)
    found = filled(tokens, targets, known)
    for strength in (1e-6, 1.0):
        (fitted,) = found.without(1, 3).solve([strength])
        for fold, sums in found.folds.items():
            chosen = fold == FOLD
            expected = (fitted.predict(tokens[chosen]) - targets[chosen])[known[chosen]].square().sum()
            assert sums.error(fitted) == pytest.approx(float(expected), rel=1e-8)


def test_leaving_a_fold_out_is_a_fit_that_never_saw_it() -> None:
    (tokens, targets), known = samples(), masks(several=True)
    found = filled(tokens, targets, known)
    for fold in range(FOLDS):
        rest = fold != FOLD
        (left,) = found.without(fold).solve([1e-2])
        expected = slow(tokens[rest], targets[rest], known[rest], 1e-2, seen=tokens)
        torch.testing.assert_close(left.predict(tokens), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("held", [None, [2]])
def test_the_strength_has_the_least_error_over_the_folds_held_out(held: list[int] | None) -> None:
    tokens, targets = samples(width=14)
    known = masks(several=False)
    errors = torch.zeros(len(ridge.STRENGTHS), dtype=torch.float64)
    for fold in held or range(FOLDS):
        rest, left = fold != FOLD, fold == FOLD
        for number, strength in enumerate(ridge.STRENGTHS):
            told = slow(tokens[rest], targets[rest], known[rest], strength, seen=tokens[left])
            errors[number] += ((told - targets[left]).square() * known[left]).sum()
    assert filled(tokens, targets, known).choose(held) == ridge.STRENGTHS[int(errors.argmin())]


def test_the_strength_follows_what_tokens_tell() -> None:
    tokens, _targets = samples()
    assert filled(tokens, noise(9, IMAGES, PLACES, TARGETS)).choose() >= 1
    assert filled(tokens, tokens[..., :TARGETS].double()).choose() == min(ridge.STRENGTHS)


def test_a_constant_channel_takes_no_part() -> None:
    tokens, targets = samples()
    plain = filled(tokens, targets).solve(1e-3)
    for level in (0.0, 7.3, 1e6):
        constant = torch.cat([tokens, torch.full_like(tokens[..., :1], level)], 2)
        found = filled(constant, targets).solve(1e-3)
        assert found.deviation.isinf().tolist() == [False] * WIDTH + [True] and not found.weight[:, -1].any()
        constant[..., -1] = -1e9
        torch.testing.assert_close(found.predict(constant), plain.predict(tokens), rtol=1e-9, atol=1e-9)
    # Where nothing varies, the mean of each place is all that is told.
    still = filled(torch.full_like(tokens, 3.0), targets)
    for shared in (False, True):
        (found,) = still.without().solve([1e-3], shared=shared)
        torch.testing.assert_close(found.predict(tokens), targets.mean(0).expand_as(targets), rtol=1e-9, atol=1e-9)


def test_fewer_samples_than_channels_are_solved_all_the_same() -> None:
    tokens, targets = samples(width=3 * PLACES)
    few = (tokens[:2], targets[:2], torch.tensor([0, 1]))
    found = Ridge()
    found.add(*few)
    expected = slow(few[0], few[1], torch.ones(2, PLACES, 1, dtype=torch.bool), 1e-2, seen=tokens)
    torch.testing.assert_close(found.solve(1e-2).predict(tokens), expected, rtol=1e-6, atol=1e-6)
    assert found.choose(held=[1]) in ridge.STRENGTHS


def test_what_stands_where_targets_are_unknown_changes_nothing() -> None:
    (tokens, targets), known = samples(), masks(several=True)
    spoilt = torch.where(known, targets, torch.nan)
    close(filled(tokens, spoilt, known).solve(0.1), filled(tokens, targets, known).solve(0.1), tokens, 0)


@pytest.mark.parametrize("strength", [1e-4, 0.3, 10.0])
def test_centred_it_takes_place_means_from_tokens_and_nothing_from_targets(strength: float) -> None:
    tokens, targets, known = deviations()
    found = centred(tokens, targets, known).solve(strength)
    assert not found.offset.any() and found.mean.shape == (PLACES, WIDTH)
    expected = slow_centred(tokens, targets, known, strength)
    torch.testing.assert_close(found.predict(tokens), expected, rtol=1e-8, atol=1e-8)
    # What all tokens of a place have in common says nothing.
    moved = tokens + 7 * noise(6, 1, PLACES, WIDTH).float()
    torch.testing.assert_close(
        centred(moved, targets, known).solve(strength).predict(moved), expected, rtol=1e-5, atol=1e-5
    )


def test_the_mean_map_that_is_given_is_that_of_the_other_folds() -> None:
    """Targets are deviations from the mean of all folds: the others have another, and a fold is not to be told it."""
    tokens, targets, known = deviations()
    strengths = (1e2, 1e0, 1e-2, 1e-4)
    errors, untold = torch.zeros(2, len(strengths), dtype=torch.float64)
    for fold in range(FOLDS):
        rest, left = fold != FOLD, fold == FOLD
        own = (place_means(targets[rest], known[rest]) - place_means(targets, known))[None]
        assert own.abs().max() > 0.3
        for number, strength in enumerate(strengths):
            parts = tokens[rest], targets[rest], known[rest], strength, tokens[left]
            for sums, given in ((errors, own), (untold, None)):
                told = slow_centred(*parts, given=given)
                sums[number] += ((told - targets[left]).square() * known[left]).sum()
    found = centred(tokens, targets, known, strengths)
    asked: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        error = ridge.Sums.error
        patch.setattr(ridge.Sums, "error", lambda sums, fitted: asked.append(error(sums, fitted)) or asked[-1])
        assert found.choose() == strengths[int(errors.argmin())]
    summed = torch.tensor(asked, dtype=torch.float64).view(FOLDS, len(strengths)).sum(0)
    torch.testing.assert_close(summed, errors, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(errors, untold, rtol=1e-3)
