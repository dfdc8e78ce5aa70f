"""Depth measures agree with slow independent references, and invalid pixels influence nothing."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from depthjepa.depth import (
    align_scale_shift,
    disparity,
    metrics,
    pool_valid,
    r2_between,
    r2_position,
    r2_within,
    valid,
    within_sums,
)

GARBAGE = (0.0, -7.0, math.nan, math.inf, 1e30)


def maps(seed: int = 0, b: int = 4, h: int = 12, w: int = 16) -> tuple[torch.Tensor, ...]:
    """Predictions, targets [m] and masks; the last image has no valid pixel."""
    draw = torch.Generator().manual_seed(seed)
    target = 0.5 + 8 * torch.rand(b, 1, h, w, generator=draw)
    prediction = target * (0.7 + 0.6 * torch.rand(b, 1, h, w, generator=draw)) + 0.3
    known = torch.rand(b, 1, h, w, generator=draw) > 0.4
    known[-1] = False
    return prediction, target, known


def spoil(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Put every kind of garbage where values are not known."""
    spoilt = values.clone()
    spoilt[~known] = torch.tensor(GARBAGE).repeat(values.numel())[: int((~known).sum())]
    return spoilt


def cells(seed: int = 0, n: int = 40, p: int = 30) -> tuple[torch.Tensor, ...]:
    """Truth with a shared layout, image offsets and structure; a mask; the mean map of other images."""
    draw = torch.Generator().manual_seed(seed)
    mean_map = torch.randn(p, generator=draw)
    offsets = torch.randn(n, 1, generator=draw)
    truth = mean_map + offsets + torch.randn(n, p, generator=draw)
    return truth, torch.rand(n, p, generator=draw) > 0.3, mean_map


def test_only_finite_depth_in_range_is_valid() -> None:
    depth = torch.tensor([*GARBAGE, 1e-4, 1e-3, 5.0, 80.0, 80.1])
    assert valid(depth, maximum=80.0).tolist() == [False] * 6 + [True] * 3 + [False]
    assert valid(torch.tensor([1e30])).item()


def test_disparity_is_zero_where_invalid_and_its_gradient_is_finite() -> None:
    depth = torch.tensor([0.0, 4.0, math.nan, math.inf, -1.0, 1e-30], requires_grad=True)
    values = disparity(depth)
    values.sum().backward()
    assert values.tolist() == [0, 0.25, 0, 0, 0, 0]
    assert depth.grad is not None and depth.grad.tolist() == [0, -1 / 16, 0, 0, 0, 0]


@pytest.mark.parametrize("size", [(4, 8), (5, 7), (12, 16), (1, 1)])
def test_pooling_is_the_mean_over_valid_pixels_of_each_cell(size: tuple[int, int]) -> None:
    _, values, known = maps()
    values = torch.cat([values, values.square()], 1)
    means, share = pool_valid(spoil(values, known.expand_as(values)), known, size)
    for b, row, col in np.ndindex(4, *size):
        rows = slice(row * 12 // size[0], math.ceil((row + 1) * 12 / size[0]))
        cols = slice(col * 16 // size[1], math.ceil((col + 1) * 16 / size[1]))
        mask = known[b, 0, rows, cols]
        expected = values[b, :, rows, cols][:, mask].mean(1) if mask.any() else torch.zeros(2)
        torch.testing.assert_close(means[b, :, row, col], expected)
        assert share[b, 0, row, col].item() == pytest.approx(mask.float().mean().item())


def test_pooling_gives_no_gradient_to_invalid_pixels() -> None:
    _, values, known = maps()
    values = spoil(values, known).requires_grad_()
    pool_valid(values, known, (3, 4))[0].sum().backward()
    assert values.grad is not None and torch.isfinite(values.grad).all()
    assert not values.grad[~known].any()


def test_alignment_is_the_least_squares_fit_of_each_image() -> None:
    prediction, target, known = maps()
    aligned = align_scale_shift(prediction, spoil(target, known), known)
    for b in range(3):
        x, y = prediction[b][known[b]].numpy(), target[b][known[b]].numpy()
        scale, shift = np.polyfit(x.astype(np.float64), y, 1)
        np.testing.assert_allclose(aligned[b].numpy(), scale * prediction[b].numpy() + shift, rtol=1e-5)
    assert torch.equal(aligned[3], prediction[3])  # nothing to align to: as it was
    spoilt = align_scale_shift(spoil(prediction, known), spoil(target, known), known)
    assert torch.equal(spoilt[known], aligned[known])


def test_alignment_undoes_any_scale_and_shift_and_defines_constant_maps() -> None:
    _, target, known = maps()
    aligned = align_scale_shift(-3 * target + 5, target, known)
    torch.testing.assert_close(aligned[:3], target[:3])
    constant = align_scale_shift(torch.full_like(target, 0.1), target, known)
    for b in range(3):
        torch.testing.assert_close(constant[b].unique(), target[b][known[b]].double().mean().float()[None])
    single = torch.zeros_like(known)
    single[:, :, 2, 3] = True
    torch.testing.assert_close(align_scale_shift(target * 9, target, single)[single], target[single])


def test_metrics_agree_with_their_formulas_image_by_image() -> None:
    prediction, target, known = maps()
    found = metrics(spoil(prediction, known), spoil(target, known), known, minimum=1.0, maximum=6.0)
    for b in range(3):
        p = np.clip(prediction[b][known[b]].double().numpy(), 1, 6)
        g = target[b][known[b]].double().numpy()
        d = np.log(p) - np.log(g)
        ratio = np.maximum(p / g, g / p)
        expected = {
            "absrel": np.mean(np.abs(p - g) / g),
            "sqrel": np.mean((p - g) ** 2 / g),
            "rmse": np.sqrt(np.mean((p - g) ** 2)),
            "rmselog": np.sqrt(np.mean(d**2)),
            "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
            "silog": 100 * np.sqrt(np.mean(d**2) - np.mean(d) ** 2),
            "delta1": np.mean(ratio < 1.25),
            "delta2": np.mean(ratio < 1.25**2),
            "delta3": np.mean(ratio < 1.25**3),
        }
        assert {name: each[b].item() for name, each in found.items()} == pytest.approx(expected, rel=1e-9)
    assert all(math.isnan(each[3]) for each in found.values())


def test_a_perfect_prediction_has_no_error_and_silog_ignores_scale() -> None:
    _, target, known = maps()
    perfect = metrics(target, target, known)
    assert all(perfect[name][:3].eq(1).all() for name in ("delta1", "delta2", "delta3"))
    assert all(each[:3].eq(0).all() for name, each in perfect.items() if not name.startswith("delta"))
    assert metrics(2 * target, target, known)["silog"][:3].max() < 1e-4


def test_faulty_predictions_are_not_averaged_away() -> None:
    prediction, target, known = maps()
    broken = torch.where(known, torch.nan, prediction)
    with pytest.raises(ValueError, match="finite"):
        metrics(broken, target, known)
    with pytest.raises(ValueError, match="above 0"):
        metrics(prediction, target * 0, known)
    with pytest.raises(ValueError, match="finite"):
        r2_within(broken.flatten(1), target.flatten(1), known.flatten(1), target[0].flatten())
    with pytest.raises((ValueError, TypeCheckError), match=r"shapes|checking"):
        metrics(prediction[:1], target, known)


def slow_r2(guess: np.ndarray, truth: np.ndarray, known: np.ndarray, mean_map: np.ndarray) -> list[float]:
    """R² within, between, by position, as loops over the definition (D1, D2)."""
    sums = np.zeros((3, 2))
    for g, t, mask in zip(guess, truth, known, strict=True):
        if mask.any():
            g_dev, t_dev = (g - mean_map)[mask], (t - mean_map)[mask]
            for difference, column in ((t_dev - g_dev, 0), (t_dev, 1)):
                sums[0, column] += ((difference - difference.mean()) ** 2).sum()
                sums[1, column] += mask.sum() * difference.mean() ** 2
                sums[2, column] += (difference**2).sum()
    return list(1 - sums[:, 0] / sums[:, 1])


def test_r2_measures_agree_with_loops_and_add_up() -> None:
    truth, known, mean_map = cells()
    known[3] = False
    guess = truth + torch.randn(truth.shape, generator=torch.Generator().manual_seed(5))
    arguments = spoil(guess, known), spoil(truth, known), known, mean_map
    found = [measure(*arguments) for measure in (r2_within, r2_between, r2_position)]
    doubles = [each.double().numpy() for each in (guess, truth)]
    expected = slow_r2(*doubles, known.numpy(), mean_map.double().numpy())
    assert found == pytest.approx(expected, rel=1e-9)
    residual, total = within_sums(*arguments)
    assert 1 - residual.sum().item() / total.sum().item() == pytest.approx(found[0], rel=1e-12)
    assert residual[3] == total[3] == 0


def test_planted_predictions_score_what_they_must() -> None:
    truth, known, mean_map = cells()
    everyone = mean_map.expand_as(truth)
    for measure in (r2_within, r2_between, r2_position):
        assert measure(everyone, truth, known, mean_map) == 0
        assert measure(truth, truth, known, mean_map) == 1
    assert r2_within(truth.roll(1, 0), truth, known, mean_map) < -0.5
    offsets = 10 * torch.randn(len(truth), 1, generator=torch.Generator().manual_seed(1))
    assert r2_within(everyone + offsets, truth, known, mean_map) == pytest.approx(0, abs=1e-6)
    guess = truth + torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    before = r2_within(guess, truth, known, mean_map)
    assert r2_within(guess + offsets, truth, known, mean_map) == pytest.approx(before, abs=1e-6)
    assert r2_within(truth / 2 + mean_map / 2, truth, known, mean_map) == pytest.approx(0.75, abs=1e-6)


def test_r2_of_truth_that_does_not_vary_is_undefined() -> None:
    flat = torch.ones(3, 5)
    assert math.isnan(r2_within(flat, flat, flat > 0, torch.zeros(5)))
