"""Probes and diagnostics against slow independent references, and on planted cases."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F

from depthjepa.data.samples import Batch
from depthjepa.evaluation import classification
from depthjepa.evaluation.classification import (
    Standardiser,
    chance,
    fit_logistic,
    held_out,
    knn,
    knn_accuracies,
    linear,
)
from depthjepa.evaluation.diagnostics import deviation, diagnose, effective_rank, rank_me, token_shares, verdict
from depthjepa.evaluation.features import Pooled, pooled_features
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
