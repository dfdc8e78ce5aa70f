"""Ways to a low guidance loss are planted; each is caught by the figure that is meant for it, and named."""

import math
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from depthjepa.evaluation.alignment import cka_selectivity
from depthjepa.evaluation.shortcuts import (
    Floors,
    attainable_energy,
    blurred_to,
    explained,
    floor_ratio,
    gradients,
    measure,
    specificity,
    verdict,
)
from depthjepa.faults import BadInput
from depthjepa.grid import to_tokens

SIDE = 28
IMAGES = 60
CONTRAST = 0.5
NOISE = 0.4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def scenes(channels: int) -> tuple[Tensor, Tensor]:
    """Maps of a layout that all images share, an offset per image and four boxes of its own; others' mean map."""
    source = generator(channels)
    shape = 5 * IMAGES, channels, SIDE, SIDE
    layout = torch.linspace(-1, 1, SIDE)[:, None] + 0.2 * torch.randn(shape[1:], generator=source)
    deviation = (0.4 * torch.randn(*shape[:2], 1, 1, generator=source)).repeat(1, 1, SIDE, SIDE)
    for image in deviation:
        for _ in range(4):
            height, width = (int(each) for each in torch.randint(4, SIDE // 2, (2,), generator=source))
            top, left = (int(torch.randint(SIDE - size, (1,), generator=source)) for size in (height, width))
            image[:, top : top + height, left : left + width] += 0.3 + torch.rand(channels, 1, 1, generator=source)
    maps = layout + deviation
    return maps[IMAGES:].mean(0), maps[:IMAGES]


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian, with the border repeated."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows = F.pad(maps.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(rows, kernel[None, None, None]), kernel[None, None, :, None]).view_as(maps)


@cache
def planted(channels: int) -> dict[str, Tensor]:
    layout, teacher = scenes(channels)
    deviation = teacher - layout
    offset = deviation.mean((2, 3), keepdim=True)
    return {
        "mean map": layout.expand_as(teacher),
        "mean map + offset": layout + offset,
        "heavy blur": layout + blur(deviation, SIDE / 5),
        "moderate blur": layout + blur(deviation, SIDE / 14),
        "half contrast": layout + offset + CONTRAST * (deviation - offset),
        "noise": teacher + NOISE * torch.randn(teacher.shape, generator=generator(1)),
        "wrong image": teacher.roll(1, 0),
        "one map for all": teacher[:1].expand_as(teacher),
        "inverted": layout - deviation,
        "exaggerated": layout + 2 * deviation,
        "wrong offsets": teacher + torch.randn(IMAGES, 1, 1, 1, generator=generator(2)),
        "perfect": teacher,
    }


@cache
def figures(name: str, channels: int) -> dict[str, float]:
    layout, teacher = scenes(channels)
    return measure(teacher, planted(channels)[name], torch.ones_like(teacher, dtype=torch.bool), layout)


both = pytest.mark.parametrize("channels", [1, 4])


@both
def test_figures_of_planted_predictions(channels: int) -> None:
    of: Callable[[str], dict[str, float]] = lambda name: figures(name, channels)  # noqa: E731
    layout, teacher = scenes(channels)
    near = lambda value: pytest.approx(value, abs=1e-5)  # noqa: E731

    mean = of("mean map")
    assert (mean["floor_ratio"], mean["r2_position"], mean["r2_within"], mean["r2_between"]) == (1, 0, 0, 0)
    assert (mean["gradient_correlation"], mean["gradient_energy"], mean["channels_above_mean"]) == (0, 0, 0)
    assert (mean["retrieval_top1"], mean["retrieval_chance"]) == (near(1 / 50), near(1 / 50))
    assert (mean["specificity_auc"], mean["retrieval_p"]) == (near(0.5), 1)

    offset = of("mean map + offset")
    assert (offset["r2_between"], offset["r2_within"]) == (near(1), near(0))
    assert 0.2 < offset["r2_position"] < 0.8 and offset["floor_ratio"] < 0.8
    assert (offset["gradient_energy"], offset["retrieval_top1"], offset["retrieval_p"]) == (near(0), near(1 / 50), 1)

    perfect = of("perfect")
    assert {name: value for name, value in perfect.items() if value not in (0, 1)}.keys() == {
        "attainable_energy",
        "retrieval_chance",
        "retrieval_p",
        "images",
    }
    assert (perfect["floor_ratio"], perfect["retrieval_p"]) == (0, pytest.approx(1 / 1001))

    half = of("half contrast")
    assert half["r2_within"] == near(1 - (1 - CONTRAST) ** 2)
    assert (half["gradient_correlation"], half["gradient_energy"]) == (near(1), near(CONTRAST))
    assert half["retrieval_top1"] == near(1)

    heavy, moderate = of("heavy blur"), of("moderate blur")
    assert heavy["floor_ratio"] < 0.5 and heavy["r2_position"] > 0.5  # which is what the loss would show
    assert heavy["gradient_energy"] < 0.15 and heavy["gradient_correlation"] < 0.4
    assert 0.1 < heavy["r2_within"] < 0.5
    assert heavy["retrieval_top1"] > 0.5 and heavy["retrieval_p"] < 0.01
    assert 0.25 < moderate["gradient_energy"] < 0.4 and moderate["gradient_correlation"] > 0.4
    assert moderate["r2_within"] > 0.6 and moderate["specificity_auc"] > 0.95

    noise = of("noise")  # each difference of neighbours has twice the noise's variance
    steps = torch.cat([(teacher - layout).diff(dim=axis).flatten() for axis in (2, 3)])
    energy = (1 + 2 * NOISE**2 / steps.square().mean().item()) ** 0.5
    assert energy > 1.5
    assert noise["gradient_energy"] == pytest.approx(energy, rel=0.02)
    assert noise["gradient_correlation"] == pytest.approx(1 / energy, rel=0.05)
    within = (teacher - layout).var((2, 3), correction=0).mean().item()
    assert noise["r2_within"] == pytest.approx(1 - NOISE**2 / within, abs=0.02)
    assert noise["retrieval_top1"] > 0.95

    for name in ("wrong image", "one map for all"):
        wrong = of(name)
        assert wrong["gradient_energy"] == pytest.approx(1, abs=0.3)
        assert abs(wrong["gradient_correlation"]) < 0.25
        assert abs(wrong["specificity_auc"] - 0.5) < 0.1 and wrong["retrieval_top1"] < 0.1
        assert wrong["retrieval_p"] > 0.05
        assert wrong["r2_within"] < -0.5
    assert of("wrong image")["gradient_energy"] == pytest.approx(1, abs=1e-5)


@both
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mean map", "predicts the mean map"),
        ("mean map + offset", "an offset per image alone"),
        ("heavy blur", "blurred"),
        ("noise", "noise"),
        ("wrong image", "another image's map"),
        ("one map for all", "another image's map, or one map for all"),
        ("inverted", "inverted"),
        ("exaggerated", "exaggerated"),
        ("wrong offsets", "wrong offsets"),
        ("moderate blur", None),
        ("half contrast", None),
        ("perfect", None),
    ],
)
def test_one_failure_has_the_one_sentence_meant_for_it(name: str, sentence: str | None, channels: int) -> None:
    found = verdict(figures(name, channels))
    assert len(found) == (sentence is not None)
    assert sentence is None or found[0].startswith(sentence)


def test_a_sentence_gives_its_figure_and_wrong_offsets_come_second() -> None:
    known = figures("heavy blur", 1)
    assert f"{known['gradient_energy']:.2f}" in verdict(known)[0]
    blurred, offsets = verdict(known | {"r2_within": 0.35, "r2_position": -2.0})
    assert blurred.startswith("blurred") and offsets.startswith("wrong offsets") and "-2.00" in offsets


def test_limits_are_those_that_are_given() -> None:
    known = figures("moderate blur", 1)
    below = known | {"gradient_energy": 0.29}
    assert verdict({name: value for name, value in below.items() if name != "attainable_energy"})[0].startswith("blur")
    assert verdict(below | {"attainable_energy": 0.6})[0].startswith("blur")
    assert verdict(below | {"attainable_energy": 0.5}) == []  # as sharp as half of what patches allow
    assert verdict(below | {"attainable_energy": 0.6}, Floors(gradient_energy=0.2)) == []
    (weak,) = verdict(known, Floors(r2_within=0.99, gradient_correlation=0.2))
    assert weak.startswith("weak") and "within" in weak and "correlation" not in weak


def test_a_channel_that_is_not_learned_is_counted() -> None:
    layout, teacher = scenes(4)
    guess = teacher.clone()
    guess[:, 2] = teacher[:, 2].roll(1, 0)
    guess[:, 3] = layout[3]
    known = torch.ones(IMAGES, 1, SIDE, SIDE, dtype=torch.bool)
    assert explained(teacher, guess, known, layout)["channels_above_mean"] == 0.5
    still = torch.cat([teacher[:, :3], layout[3:].expand(IMAGES, 1, SIDE, SIDE)], 1)  # asks for nothing
    assert explained(still, guess, known, layout)["channels_above_mean"] == pytest.approx(2 / 3)


def holes(channels: int, seed: int = 0) -> Tensor:
    """Rectangles that are not valid, elsewhere in each image; one image without any valid cell."""
    known = torch.ones(IMAGES, channels, SIDE, SIDE, dtype=torch.bool)
    for image in known:
        top, left = (int(each) for each in torch.randint(SIDE - 8, (2,), generator=generator(seed)))
        image[:, top : top + 12, left : left + 8] = False
        seed += 1
    known[-1] = False
    return known


@both
@pytest.mark.parametrize("name", ["moderate blur", "wrong image", "perfect"])
def test_what_stands_at_invalid_cells_changes_nothing(name: str, channels: int) -> None:
    layout, teacher = scenes(channels)
    known, guess = holes(channels), planted(channels)[name]
    clean = measure(teacher, guess, known, layout)
    garbage = [torch.where(known, each, value) for each, value in ((teacher, torch.nan), (guess, 1e9))]
    assert measure(*garbage, known, layout) == clean
    swapped = [torch.where(known, each, value) for each, value in ((teacher, -1e9), (guess, torch.inf))]
    assert measure(*swapped, known, layout) == clean
    assert measure(*swapped, known[:, :1], layout) == clean  # one mask for all channels
    assert not any(map(math.isnan, clean.values()))
    assert bool(verdict(clean)) == (name == "wrong image")


def test_a_hole_in_one_channel_leaves_the_others() -> None:
    layout, teacher = scenes(4)
    known = torch.ones_like(teacher, dtype=torch.bool)
    known[:, 0] = False
    guess = torch.where(known, planted(4)["moderate blur"], 1e9)
    everywhere = known[:, 1:]
    without = measure(teacher[:, 1:], guess[:, 1:], everywhere, layout[1:])
    assert measure(teacher, guess, known, layout) == pytest.approx(without)


def test_faulty_input_is_refused() -> None:
    layout, teacher = scenes(1)
    known = torch.ones_like(teacher, dtype=torch.bool)
    with pytest.raises(ValueError, match="finite"):
        measure(teacher, torch.where(teacher > 1, torch.nan, teacher), known, layout)
    with pytest.raises(BadInput, match="at least 4"):
        specificity(teacher[:3], teacher[:3], known[:3], layout)
    still = layout.expand_as(teacher)
    assert math.isnan(floor_ratio(still, teacher, known, layout))
    assert verdict(measure(still, teacher, known, layout))[0].startswith("undecided: the teacher")


def small(seed: int, images: int = 13, candidates_tie: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = generator(seed)
    teacher = torch.randn(images, 2, 5, 6, generator=source, dtype=torch.float64)
    guess = 0.4 * teacher + torch.randn(teacher.shape, generator=source, dtype=torch.float64)
    known = torch.rand(images, 2, 5, 6, generator=source) > 0.3
    if candidates_tie:  # two images with one map
        teacher[1], known[1] = teacher[0], known[0]
        known[4] = False
    return teacher, guess, known, torch.randn(2, 5, 6, generator=source, dtype=torch.float64)


def slow_pair(guess: np.ndarray, truth: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Mean squared difference and correlation over the cells that both have, less their mean in each channel."""
    parts: list[list[np.ndarray]] = [[], []]
    for channel in range(len(guess)):
        cells = known[channel]
        for part, each in zip(parts, (guess, truth), strict=True):
            values = each[channel][cells]
            part.append(values - values.mean() if len(values) else values)
    p, t = (np.concatenate(part) for part in parts)
    return ((p - t) ** 2).mean(), (p * t).sum() / np.sqrt((p**2).sum() * (t**2).sum())


@pytest.mark.parametrize("tie", [False, True])
def test_specificity_agrees_with_loops(tie: bool) -> None:
    teacher, guess, known, layout = small(0, candidates_tie=tie)
    found = specificity(teacher, guess, known, layout, candidates=5)
    t, p = ((each - layout).numpy() for each in (teacher, guess))
    k = known.numpy()
    images = [image for image in range(len(t)) if k[image].any()]
    pair = {(i, j): slow_pair(p[i], t[j], k[i] & k[j]) for i in images for j in images}
    score, tops = [], []
    draw = np.random.default_rng(0)
    for i in images:
        others = [j for j in images if j != i]
        for j in others:
            gap = pair[i, j][0] - pair[i, i][0]
            score.append(0.5 if abs(gap) < 1e-9 else float(gap > 0))
        for _ in range(2000):
            rivals = [pair[i, int(j)][1] for j in draw.choice(others, 4, replace=False)]
            equal = sum(abs(rival - pair[i, i][1]) < 1e-9 for rival in rivals)
            beaten = all(rival < pair[i, i][1] + 1e-9 for rival in rivals)
            tops.append(beaten / (1 + equal))
    assert (0.5 in score) == tie
    assert 0.6 < np.mean(score) < 1
    assert found["specificity_auc"] == pytest.approx(np.mean(score), rel=1e-12)
    assert found["retrieval_top1"] == pytest.approx(np.mean(tops), abs=0.01)
    assert found["retrieval_chance"] == pytest.approx(1 / 5)

    matched = np.mean([pair[i, i][1] for i in images])
    orders = [draw.permutation(images) for _ in range(1000)]
    null = [np.mean([pair[i, int(j)][1] for i, j in zip(images, order, strict=True)]) for order in orders]
    assert found["retrieval_p"] == pytest.approx(np.mean(np.array(null) >= matched), abs=0.02)


def test_images_that_share_few_cells_are_not_compared() -> None:
    """Ten images have depth in the upper half alone, six in the lower half and in one row of the upper."""
    teacher = torch.randn(16, 1, 8, 8, generator=generator(4))
    known = torch.zeros(16, 1, 8, 8, dtype=torch.bool)
    known[:10, :, :4] = True
    known[10:, :, 3:] = True
    found = specificity(teacher, teacher, known, torch.zeros(1, 8, 8))
    assert found["retrieval_chance"] == pytest.approx((10 / 16 + 6 / 6) / 16)  # 8 of 32 cells are enough, of 40 not
    assert found["retrieval_top1"] == 1
    apart = known.clone()
    apart[10:, :, 3] = False
    found = specificity(teacher, teacher, apart, torch.zeros(1, 8, 8))
    assert found["retrieval_chance"] == pytest.approx((10 / 10 + 6 / 6) / 16)


def test_a_likeness_of_few_cells_is_no_evidence() -> None:
    """Two halves that share two cells, in which any two maps correlate by 1, and matched ones by less."""
    teacher = torch.randn(16, 1, 8, 8, generator=generator(5))
    guess = teacher + torch.randn(teacher.shape, generator=generator(6))
    known = torch.zeros_like(teacher, dtype=torch.bool)
    known[:8, :, :4] = True
    known[8:, :, 4:] = True
    known[:, :, 4, :2] = True
    for maps in (teacher, guess):
        maps[:, :, 4, :2] = torch.tensor([0.0, 0.1])
    found = specificity(teacher, guess, known, torch.zeros(1, 8, 8))
    assert found["retrieval_chance"] == pytest.approx(1 / 8)
    assert found["retrieval_p"] < 0.01 and found["retrieval_top1"] > 0.8


def test_gradients_agree_with_loops() -> None:
    teacher, guess, known, layout = small(1)
    t, p, k = (teacher - layout).numpy(), (guess - layout).numpy(), known.numpy()
    slopes = []
    for image, channel, row, column in np.ndindex(t.shape):
        for other in ((image, channel, row + 1, column), (image, channel, row, column + 1)):
            here = image, channel, row, column
            if other[2] < t.shape[2] and other[3] < t.shape[3] and k[here] and k[other]:
                slopes.append((t[other] - t[here], p[other] - p[here]))
    a, b = np.array(slopes).T
    found = gradients(teacher, guess, known, layout)
    assert found["gradient_energy"] == pytest.approx(((b**2).sum() / (a**2).sum()) ** 0.5)
    assert found["gradient_correlation"] == pytest.approx((a * b).sum() / ((a**2).sum() * (b**2).sum()) ** 0.5)


def test_p_of_unrelated_maps_is_spread_evenly() -> None:
    found = []
    for seed in range(60):
        teacher, _, known, layout = small(seed)
        guess = torch.randn(teacher.shape, generator=generator(1000 + seed), dtype=torch.float64)
        found.append(specificity(teacher, guess, known, layout, permutations=200)["retrieval_p"])
    assert 0.35 < np.mean(found) < 0.65
    assert 0 < np.mean(np.array(found) <= 0.25) < 0.45


def test_attainable_energy() -> None:
    """A slope keeps its gradients when it is blurred to patches, a checkerboard loses all of them."""
    ramp = torch.arange(16.0).expand(4, 1, 16, 16)
    known = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    nothing = torch.zeros(1, 16, 16)
    # But for the outermost cells, which have no block beyond.
    assert 0.9 < attainable_energy(ramp, known, nothing) <= 1
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(4, 1, 16, 16)
    assert attainable_energy(board, known, nothing) == pytest.approx(0, abs=1e-6)
    layout, teacher = scenes(1)
    everywhere = torch.ones_like(teacher, dtype=torch.bool)
    fine, coarse = (attainable_energy(teacher, everywhere, layout, factor) for factor in (2, 4))
    assert 0.8 > fine > coarse > 0


@pytest.mark.parametrize("rows", [8, 7])
def test_blurring_leaves_out_invalid_cells(rows: int) -> None:
    maps = torch.full((2, 3, rows, 6), 5.0)
    known = torch.rand(2, 1, rows, 6, generator=generator(0)) > 0.5
    known[:, :, :4, :2] = True
    known[:, :, 4:] = False  # blocks without any valid cell beside blocks that have some
    blurred = blurred_to(torch.where(known, maps, 1e9), known, 2)
    assert blurred.shape == maps.shape
    assert torch.allclose(blurred[known.expand_as(maps)], torch.tensor(5.0))


def tokens(seed: int = 0, images: int = 60, n: int = 16) -> tuple[Tensor, Tensor]:
    """A position's code that all images share, and the teacher's cells of patches with a layout of their own."""
    source = generator(seed)
    return torch.randn(1, n, 12, generator=source).expand(images, n, 12), torch.randn(images, n, 4, generator=source)


def test_cka_agrees_with_the_form_of_samples_by_samples() -> None:
    source = generator(3)
    cells = torch.randn(7, 5, 4, generator=source)
    mixed = torch.randn(4, 6, generator=source)
    features = cells @ mixed + torch.randn(7, 5, 6, generator=source) + torch.randn(5, 6, generator=source)
    known = torch.rand(7, 5, generator=source) > 0.2
    x, y, k = features.double().numpy(), cells.double().numpy(), known.numpy()
    for position in range(5):
        for each in (x, y):
            each[k[:, position], position] -= each[k[:, position], position].mean(0)
    gram_x, gram_y = (each[k] @ each[k].T for each in (x, y))
    direct = (gram_x * gram_y).sum() / np.sqrt((gram_x**2).sum() * (gram_y**2).sum())
    spoiled = torch.where(known[..., None], features, torch.nan), torch.where(known[..., None], cells, 1e9)
    found = cka_selectivity(*spoiled, known)
    assert found["cka"] == pytest.approx(direct)
    assert found["cka_selectivity"] == found["cka"] - found["cka_shuffled"]
    assert found == cka_selectivity(features, cells, known)


def test_selectivity_of_features() -> None:
    place, cells = tokens()
    layout = torch.randn(1, 16, 4, generator=generator(9))
    noise = torch.randn(place.shape, generator=generator(8))
    position_alone = cka_selectivity(place + 0.1 * noise, cells + 5 * layout)
    assert abs(position_alone["cka_selectivity"]) < 0.02
    assert cka_selectivity(place, cells)["cka"] == 0
    knowing = place + 0.1 * noise
    knowing[..., :4] += cells
    holding = cka_selectivity(knowing, cells + 5 * layout)
    assert holding["cka_selectivity"] > 0.9 and holding["cka_shuffled"] < 0.05
    assert math.isnan(cka_selectivity(place, layout.expand_as(cells))["cka"])
    known = torch.rand(60, 16, generator=generator(7)) > 0.3
    assert cka_selectivity(knowing, cells, known)["cka_selectivity"] > 0.9
    with pytest.raises(BadInput, match="two images"):
        cka_selectivity(place[:1], cells[:1])


def test_cells_of_maps_fit_tokens() -> None:
    """The reading of cells per patch that the docstring names is that of the guidance heads."""
    _, teacher = scenes(4)
    cells = to_tokens(F.pixel_unshuffle(teacher, 2))
    assert cells.shape == (IMAGES, (SIDE // 2) ** 2, 16)
    assert torch.equal(cells[3, SIDE // 2 + 1, :4], teacher[3, 0, 2:4, 2:4].flatten())


def test_many_images_take_little_time() -> None:
    """Matrix products, not a loop over pairs: 500 images of four channels."""
    teacher = torch.randn(500, 4, 16, 16, generator=generator(0))
    known = torch.rand(500, 1, 16, 16, generator=generator(1)) > 0.3
    begin = time.process_time()
    specificity(teacher, teacher + 1, known, torch.zeros(4, 16, 16))
    assert time.process_time() - begin < 5  # 0.2 s on one idle core
