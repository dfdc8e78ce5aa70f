"""Probes and diagnostics against slow independent references, and on planted cases."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F

from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.evaluation import classification, readout, ridge
from depthjepa.evaluation.classification import (
    Standardiser,
    chance,
    fit_logistic,
    held_out,
    knn,
    knn_accuracies,
    linear,
)
from depthjepa.evaluation.depth_probe import depth_table, evaluate_depth
from depthjepa.evaluation.diagnostics import deviation, diagnose, effective_rank, rank_me, token_shares, verdict
from depthjepa.evaluation.features import Pooled, pooled_features
from depthjepa.evaluation.readout import DepthReadout, fit_readout, fit_readouts, read_origin
from depthjepa.faults import BadInput

PATCH = 4
ROWS, COLS = 3, 4


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int, seed: int = 0, size: int = 16, holes: float = 0.0) -> list[Batch]:
    """Images whose first channel shows every pixel's disparity [1/m]; holes of 2 x 2 pixels without depth."""
    draw = source(seed)
    h, w = ROWS * PATCH, COLS * PATCH
    layout = torch.linspace(0.2, 0.5, h)[:, None].expand(h, w)
    blocks = torch.rand(count, 1, h // 2, w // 2, generator=draw) * 0.3 + torch.rand(count, 1, 1, 1, generator=draw)
    disparity = layout + F.interpolate(blocks, (h, w)) * 0.4
    noise = torch.rand(count, 2, h, w, generator=draw)
    known = F.interpolate((torch.rand(count, 1, h // 2, w // 2, generator=draw) >= holes).float(), (h, w))
    depth = torch.where(known > 0, 1 / disparity, 0)
    images = torch.cat([disparity, noise], 1)
    return [
        Batch(
            index=torch.arange(start, start + len(part)),
            images=part,
            depth=depth[start : start + size],
            zoom=torch.ones(len(part)),
            labels=torch.arange(start, start + len(part)) % 3,
            names=tuple(f"image-{number}" for number in range(start, start + len(part))),
        )
        for start, part in ((start, images[start : start + size]) for start in range(0, count, size))
    ]


def patches(images: torch.Tensor) -> torch.Tensor:
    """Tokens that hold the pixels of their patch and its place: everything a linear readout needs."""
    pixels = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    return torch.cat([pixels, torch.eye(pixels.shape[1]).expand(len(images), -1, -1)], 2)


def noise_tokens(images: torch.Tensor) -> torch.Tensor:
    """Tokens that know nothing of the disparity (they are made of the noise channels, scrambled)."""
    return torch.sin(1000 * F.unfold(images[:, 1:], PATCH, stride=PATCH).transpose(1, 2))


def pooled(values: torch.Tensor, labels: torch.Tensor) -> Pooled:
    return Pooled(values, labels, tuple(map(str, range(len(labels)))))


def blobs(count: int, spread: float, seed: int, classes: int = 5, width: int = 12) -> Pooled:
    """Gaussian blobs around class centres, all far from the origin."""
    centres = torch.randn(classes, width, generator=source(99))
    labels = torch.randint(classes, (count,), generator=source(seed))
    return pooled(50 + centres[labels] + spread * torch.randn(count, width, generator=source(seed + 1)), labels)


def test_pooled_features_are_means_over_tokens_whatever_the_batches() -> None:
    whole = pooled_features(patches, batches(10, size=10))
    parts = pooled_features(patches, batches(10, size=3))
    torch.testing.assert_close(whole.values, parts.values)
    torch.testing.assert_close(whole.values[7], patches(batches(10, size=10)[0].images)[7].mean(0))
    assert whole.names == parts.names and whole.names[7] == "image-7"
    assert parts.labels.tolist() == [number % 3 for number in range(10)]


def test_an_encoder_that_gives_nan_is_refused_with_the_image() -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        tokens = patches(images)
        tokens[1, 2, 3] = math.nan
        return tokens

    with pytest.raises(BadInput, match="image-1"):
        pooled_features(broken, batches(4))


def test_nearest_neighbours_agree_with_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(60, 1.0, 0), blobs(40, 1.0, 2)
    mean = train.values.double().mean(0)
    right = 0
    for value, label in zip(test.values.double(), test.labels, strict=True):
        cosines = F.cosine_similarity((value - mean)[None], train.values.double() - mean)
        votes = np.zeros(5)
        for neighbour in cosines.argsort(descending=True)[:7]:
            votes[train.labels[neighbour]] += math.exp(cosines[neighbour] / 0.07)
        right += int(votes.argmax() == label)
    assert knn(train, test, k=7) == right / 40
    monkeypatch.setattr(classification, "SIMILARITIES", 200)  # chunks of 3
    assert knn(train, test, k=7) == right / 40


def test_several_numbers_of_neighbours_are_voted_for_from_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(60, 2.0, 0), blobs(300, 2.0, 2)
    alone = {k: knn(train, test, k=k) for k in (1, 7, 60)}
    assert len(set(alone.values())) == 3
    alone[1000] = alone[60]  # beyond the training set all of it votes
    assert knn_accuracies(train, test, (7, 1000, 1, 60)) == alone
    monkeypatch.setattr(classification, "SIMILARITIES", 200)
    assert knn_accuracies(train, test, (7, 1000, 1, 60)) == alone


def test_nearest_neighbours_find_blobs_and_nothing_in_noise() -> None:
    assert knn(blobs(200, 0.1, 0), blobs(200, 0.1, 2)) == 1.0
    train, test = (pooled(torch.randn(1000, 8, generator=source(s)), blobs(1000, 1, s).labels) for s in (1, 2))
    assert abs(knn(train, test) - 0.2) < 0.05
    few = blobs(3, 0.1, 0)
    assert 0 <= knn(few, blobs(50, 0.1, 2)) <= 1  # fewer images than neighbours


def test_chance_is_the_share_of_the_most_frequent_training_class() -> None:
    train = pooled(torch.zeros(5, 2), torch.tensor([1, 1, 1, 0, 2]))
    assert chance(train, pooled(torch.zeros(4, 2), torch.tensor([1, 0, 2, 2]))) == 0.25


def test_the_linear_classifier_solves_its_problem() -> None:
    train = blobs(120, 1.0, 0)
    features, decay = Standardiser.of(train.values)(train.values), 0.05

    def objective(flat: np.ndarray) -> float:
        weight = flat.reshape(5, 13)
        scores = features.double().numpy() @ weight[:, :-1].T + weight[:, -1]
        picked = scores[np.arange(120), train.labels.numpy()]
        loss = np.mean(np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1) - picked)
        return float(loss + decay / 2 * (weight[:, :-1] ** 2).sum())

    reference = scipy.optimize.minimize(objective, np.zeros(65), method="BFGS", options={"gtol": 1e-6})
    found = fit_logistic(features, train.labels, decay, torch.zeros(5, 13)).double().numpy()
    assert objective(found.ravel()) == pytest.approx(reference.fun, rel=1e-6)
    np.testing.assert_allclose(found[:, :-1], reference.x.reshape(5, 13)[:, :-1], atol=2e-3)


def test_the_linear_classifier_finds_blobs_and_nothing_in_noise() -> None:
    easy = linear(blobs(200, 0.1, 0), blobs(200, 0.1, 2), seed=0)
    assert easy.train_accuracy == easy.val_accuracy == 1.0
    train, test = (pooled(torch.randn(600, 8, generator=source(s)), blobs(600, 1, s).labels) for s in (1, 2))
    noise = linear(train, test, seed=0)
    assert abs(noise.val_accuracy - 0.2) < 0.06
    assert noise.weight_decay >= 0.1  # nothing to learn: held hard
    assert linear(train, test, seed=0).predictions.equal(noise.predictions)


def test_the_linear_classifier_does_not_depend_on_scale_offset_or_dead_channels() -> None:
    train, test = blobs(150, 0.8, 0), blobs(150, 0.8, 2)
    plain = linear(train, test)

    def changed(one: Pooled) -> Pooled:
        values = torch.cat([one.values * torch.linspace(0.01, 10, 12), torch.full((150, 3), 1e4)], 1)
        return pooled(values, one.labels)

    assert linear(changed(train), changed(test)).val_accuracy == pytest.approx(plain.val_accuracy, abs=0.02)
    assert not Standardiser.of(changed(train).values).inverse_deviation[12:].any()


def test_a_fifth_of_every_class_is_held_out() -> None:
    labels = torch.randint(4, (400,), generator=source(3))
    held = held_out(labels, seed=0)
    assert held.sum() == 80
    for label in range(4):
        assert abs(int(held[labels == label].sum()) - int((labels == label).sum()) / 5) <= 1
    assert held.equal(held_out(labels, seed=0)) and not held.equal(held_out(labels, seed=1))


def test_images_without_labels_are_refused() -> None:
    train = blobs(20, 1, 0)
    unknown = Pooled(train.values, torch.full((20,), -1), train.names)
    for probe in (knn, linear, chance):
        with pytest.raises(BadInput, match="no label"):
            probe(train, unknown)
    with pytest.raises(BadInput, match="at least 5"):
        linear(blobs(4, 1, 0), train)


def dense_ridge(encode: Callable[[torch.Tensor], torch.Tensor], parts: list[Batch], strength: float) -> np.ndarray:
    """The readout's prediction from least squares on rows held in memory, cell by cell, pixel by pixel."""
    images = torch.cat([part.images for part in parts])
    depth = torch.cat([part.depth for part in parts if part.depth is not None]).double().numpy()[:, 0]
    tokens = encode(images).double().numpy()
    n, half = len(images), PATCH // 2
    truth = np.full((n, 2 * ROWS, 2 * COLS), np.nan)
    for i, row, col in np.ndindex(truth.shape):
        pixels = depth[i, row * half : (row + 1) * half, col * half : (col + 1) * half]
        if (pixels > 0).any():
            truth[i, row, col] = np.mean(1 / pixels[pixels > 0])
    mean_map = np.nanmean(truth, 0)
    z = (tokens - tokens.mean((0, 1))) / tokens.std((0, 1))
    predicted = np.empty_like(truth)
    for dy, dx in np.ndindex(2, 2):
        y = (truth - mean_map)[:, dy::2, dx::2].reshape(n, -1)
        known = np.isfinite(y)
        rows = np.c_[z[known], np.ones(known.sum())]
        penalty = np.sqrt(strength * known.sum()) * np.eye(rows.shape[1])[:-1]
        solution = np.linalg.lstsq(np.r_[rows, penalty], np.r_[y[known], np.zeros(len(penalty))])[0]
        predicted[:, dy::2, dx::2] = (z @ solution[:-1] + solution[-1]).reshape(n, ROWS, COLS)
    return np.clip(predicted + mean_map, np.nanmin(truth), np.nanmax(truth))


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_readout_is_the_masked_ridge(holes: float, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "STRENGTHS", (strength,))
    parts = batches(50, holes=holes, size=8)
    fitted = fit_readout(patches, parts, PATCH)
    found = [fitted.predict(patches(part.images), ROWS, COLS) for part in parts]
    np.testing.assert_allclose(torch.cat(found)[:, 0].numpy(), dense_ridge(patches, parts, strength), atol=2e-6)


def test_the_strength_is_the_best_on_images_that_were_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = batches(30, size=30, holes=0.2)
    aside = torch.arange(30) % readout.FOLDS == readout.FOLDS // 2

    def part(chosen: torch.Tensor) -> Batch:
        whole = parts[0]
        assert whole.depth is not None
        images = whole.images[chosen]
        return Batch(torch.arange(len(images)), images, whole.depth[chosen], whole.zoom[chosen], whole.labels[chosen])

    chosen = fit_readout(patches, parts, PATCH).strength
    strengths, errors = ridge.STRENGTHS, {}
    truth, known = readout.cells_of(part(aside), 2 * ROWS, 2 * COLS)
    for strength in strengths:
        monkeypatch.setattr(ridge, "STRENGTHS", (strength,))
        inner = fit_readout(patches, [part(~aside)], PATCH)  # with one strength nothing is left to choose
        guess = inner.predict(patches(part(aside).images), ROWS, COLS)
        errors[strength] = float((guess - truth)[known].square().sum())
    assert chosen == min(errors, key=lambda each: errors[each])


def test_what_stands_at_invalid_pixels_changes_nothing() -> None:
    train, val = batches(30, 0, holes=0.5), batches(20, 1, holes=0.5)

    def spoilt(parts: list[Batch]) -> list[Batch]:
        result = []
        for part in parts:
            assert part.depth is not None
            bad = torch.tensor([math.nan, math.inf, -3.0]).repeat(part.depth.numel())[: part.depth.numel()]
            depth = torch.where(part.depth > 0, part.depth, bad.reshape(part.depth.shape))
            result.append(Batch(part.index, part.images, depth, part.zoom, part.labels))
        return result

    clean = depth_table({"patches": patches}, lambda: train, lambda: val, PATCH)
    dirty = depth_table({"patches": patches}, lambda: spoilt(train), lambda: spoilt(val), PATCH)
    assert clean.rows == dirty.rows


def test_the_table_ranks_mean_map_noise_and_tokens_that_hold_the_depth() -> None:
    table = depth_table(
        {"noise": noise_tokens, "patches": patches},
        lambda: batches(120, 0, holes=0.2),
        lambda: batches(60, 1, holes=0.2),
        PATCH,
        pictures=3,
        others={"another image": lambda batch: F.avg_pool2d(batch.images.roll(1, 0)[:, :1], 2)},
    )
    rows = {row["name"]: row for row in table.rows}
    assert list(rows) == ["mean map", "noise", "patches", "another image"]
    assert [rows["mean map"][name] for name in ("r2_within", "r2_position", "r2_between")] == [0, 0, 0]
    assert abs(float(rows["noise"]["r2_within"])) < 0.02
    assert table.readouts["noise"].strength >= 1
    assert float(rows["patches"]["r2_within"]) > 0.99 and float(rows["patches"]["delta1"]) > 0.99
    assert float(rows["another image"]["r2_within"]) < -0.3
    assert rows["patches"]["images"] == 60
    score = table.scores["patches"]
    quotient = score.per_image["within_residual"].sum() / score.per_image["within_total"].sum()
    assert score.figures["r2_within"] == pytest.approx(1 - quotient, rel=1e-12)
    assert score.figures["absrel"] == pytest.approx(np.nanmean(score.per_image["absrel"]))
    assert table.pictures.images.shape == (3, ROWS * PATCH, COLS * PATCH, 3)
    assert table.pictures.truth.shape == table.pictures.predictions["noise"].shape == (3, 2 * ROWS, 2 * COLS)
    assert np.isnan(table.pictures.truth).any() and np.isfinite(table.pictures.predictions["noise"]).all()


@pytest.mark.parametrize(("images", "asked"), [(60, 3), (7, 3), (3, 3), (2, 6), (40, 1), (5, 0)])
def test_pictures_are_spread_over_the_set(images: int, asked: int) -> None:
    val = batches(images, 1)
    mean_map, _ = fit_readouts({}, batches(40, 0), PATCH)
    numbered = {"number": lambda batch: batch.index[:, None, None, None].expand(-1, 1, 2 * ROWS, 2 * COLS) / 1e3 + 1e-3}
    wide = replace(mean_map, minimum=1e-6, maximum=1.0)
    _, shown = evaluate_depth(numbered, wide, val, asked)
    places = (1e3 * shown.predictions["number"][:, 0, 0]).round().astype(int) - 1
    assert len(places) == min(images, asked)
    everything = torch.cat([part.images for part in val])
    np.testing.assert_array_equal(shown.images, as_bytes(everything[places]) if asked else shown.images)
    # Of few images exactly those that the other pictures show; of many, as they are thinned on the way, the next ones.
    off = np.abs(places - evenly(asked, images))
    assert (off <= (0 if images <= 4 * asked else images / (4 * max(1, asked)))).all()


def test_figures_in_metres_are_means_over_images_of_inverse_disparity() -> None:
    val = batches(10, 1, holes=0.3)
    mean_map, _ = fit_readouts({}, batches(40, 0), PATCH)
    scores, _ = evaluate_depth({"mean map": mean_map.predict}, mean_map, val)
    errors, aligned = [], []
    for part in val:
        truth, known = readout.cells_of(part, 2 * ROWS, 2 * COLS)
        for t, mask in zip(truth[:, 0].double().numpy(), known[:, 0].numpy(), strict=True):
            p, g = mean_map.values.double().numpy()[mask], 1 / t[mask]
            errors.append(np.mean(np.abs(1 / p - g) / g))
            fit = np.polyval(np.polyfit(p, t[mask], 1), p).clip(mean_map.minimum, mean_map.maximum)
            aligned.append(np.mean(np.abs(1 / fit - g) / g))
    assert scores["mean map"].figures["absrel"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert scores["mean map"].figures["aligned_absrel"] == pytest.approx(np.mean(aligned), rel=1e-5)


def test_a_readout_survives_its_file_and_other_files_are_refused(tmp_path: Path) -> None:
    def with_a_dead_channel(images: torch.Tensor) -> torch.Tensor:
        tokens = patches(images)
        return torch.cat([tokens, torch.full_like(tokens[..., :1], 7.3)], 2)

    parts = batches(20)
    fitted = fit_readout(with_a_dead_channel, parts, PATCH)
    fitted.save(tmp_path / "readout.safetensors")
    loaded = DepthReadout.load(tmp_path / "readout.safetensors")
    tokens = with_a_dead_channel(parts[0].images)
    predicted = fitted.predict(tokens, ROWS, COLS)
    assert torch.equal(loaded.predict(tokens, ROWS, COLS), predicted)
    assert fitted.mean_map.minimum <= predicted.min() and predicted.max() <= fitted.mean_map.maximum
    tokens[..., -1] = -1e6
    assert torch.equal(loaded.predict(tokens, ROWS, COLS), predicted)  # a dead channel is not read
    assert fitted.predict(tokens.repeat(1, 2, 1), ROWS, 2 * COLS).shape == (16, 1, 2 * ROWS, 4 * COLS)
    with pytest.raises(BadInput, match="wide"):
        fitted.predict(tokens[..., 1:], ROWS, COLS)
    (tmp_path / "other").write_bytes(b"something else")
    for path in (tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(BadInput, match="not a depth readout"):
            DepthReadout.load(path)
        with pytest.raises(BadInput, match="not a depth readout"):
            read_origin(path)
    assert read_origin(tmp_path / "readout.safetensors") == {}
    origin = {"step": "3", "which": "target", "data": "my pairs"}
    fitted.save(tmp_path / "new" / "readout.safetensors", origin)
    assert read_origin(tmp_path / "new" / "readout.safetensors") == origin
    assert torch.equal(DepthReadout.load(tmp_path / "new" / "readout.safetensors").weight, fitted.weight)


def test_sets_that_cannot_be_probed_are_refused() -> None:
    part = batches(8)[0]
    without = Batch(part.index, part.images, None, part.zoom, part.labels)
    with pytest.raises(BadInput, match="none"):
        fit_readout(patches, [without], PATCH)
    with pytest.raises(BadInput, match="at least 5"):
        fit_readout(patches, batches(2), PATCH)
    with pytest.raises(BadInput, match="divide"):
        fit_readout(patches, [part], 5)
    with pytest.raises(BadInput, match="finite"):
        mean_map, _ = fit_readouts({}, [part], PATCH)
        evaluate_depth({"x": lambda batch: mean_map.predict(batch) * math.nan}, mean_map, [part])


def test_ranks_of_planted_features() -> None:
    draw = source(1)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=draw)).Q
    orthogonal = torch.linalg.qr(torch.randn(500, 4, generator=draw)).Q
    low = orthogonal @ basis[:4]
    assert rank_me(low) == pytest.approx(4, abs=1e-3)
    assert effective_rank(low + 100 * basis[5]) == pytest.approx(4, abs=0.1)
    assert rank_me(low + 100 * basis[5]) < 1.1  # not centred: the common component hides the rest
    assert rank_me(torch.randn(5000, 32, generator=draw)) > 31
    values = np.linalg.svd(low.double().numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert rank_me(low) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-9)
    assert effective_rank(torch.full((50, 8), 0.1)) == rank_me(torch.zeros(50, 8)) == 0


def test_deviations_are_relative_to_the_size_of_the_features() -> None:
    features = torch.randn(2000, 10, generator=source()) * torch.tensor([0.0, 1e-5] + [1.0] * 8)
    for scale in (1e-4, 1.0, 1e4):
        figures = deviation(features * scale)
        assert figures["dead_dimensions"] == pytest.approx(0.2)
        assert figures["deviation_minimum"] == 0
        assert figures["deviation_mean"] == pytest.approx(0.8 / math.sqrt(0.8), rel=0.02)
    assert deviation(torch.zeros(5, 3))["dead_dimensions"] == 1


def planted_tokens(position: float, image: float, noise: float, count: int = 60) -> torch.Tensor:
    draw = source(7)
    parts = ((1, 49), (count, 1), (count, 49))
    draws = [torch.randn(*shape, 16, generator=draw, dtype=torch.float64) for shape in parts]
    return 30 + sum(size * each for size, each in zip((position, image, noise), draws, strict=True))


@pytest.mark.parametrize("parts", [(1.0, 1.0, 1.0), (3.0, 0.5, 1.0), (1.0, 0.0, 0.1)])
def test_shares_of_planted_position_and_image_codes(parts: tuple[float, float, float]) -> None:
    shares = token_shares(planted_tokens(*parts).split(13))
    total = sum(part**2 for part in parts)
    assert shares.position == pytest.approx(parts[0] ** 2 / total, abs=0.03)
    assert shares.image == pytest.approx((parts[1] ** 2 + parts[2] ** 2 / 49) / total, abs=0.05)


def test_noise_has_no_share_of_positions_even_from_few_images() -> None:
    tokens = planted_tokens(0, 0, 1, count=4)
    raw = 4 * (tokens.mean(0) - tokens.mean((0, 1))).square().sum() / (tokens - tokens.mean((0, 1))).square().sum()
    assert raw > 0.2  # what four images leave by chance
    assert token_shares([tokens]).position < 0.02
    assert token_shares(tokens.split(1)) == pytest.approx(token_shares([tokens]))
    assert math.isnan(token_shares([torch.ones(3, 4, 2)]).position)


def test_collapse_is_found_and_named_with_its_figure() -> None:
    def position_only(images: torch.Tensor) -> torch.Tensor:
        code = torch.randn(1, ROWS * COLS, 64, generator=source(1))
        return code + 0.01 * patches(images).repeat(1, 1, 2)[..., :64]

    def one_dimension(images: torch.Tensor) -> torch.Tensor:
        return patches(images)[..., :1] * torch.randn(64, generator=source(1))

    parts = batches(100)
    healthy = diagnose(patches, parts)
    assert verdict(healthy, healthy) == []
    position = diagnose(position_only, parts)
    assert position["position_share"] > 0.99
    assert any("position collapse: 100.0%" in fault for fault in verdict(position, healthy))
    line = diagnose(one_dimension, parts)
    assert line["effective_rank"] == pytest.approx(1, abs=0.01) and line["width"] == 64
    assert any("use 1.0 of 64" in fault for fault in verdict(line, healthy))
    constant = diagnose(lambda images: torch.ones(len(images), 12, 64), parts)
    assert len(verdict(constant, healthy)) == 3
    with pytest.raises(BadInput, match="two images"):
        diagnose(patches, batches(1))
