"""Fits run where the features are, on a device that is not there; they take no more memory than is said."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.evaluation import classification, features
from depthjepa.evaluation.attentive_probe import attentive
from depthjepa.evaluation.classification import fit_logistic, knn_predictions, linear, nearest_images
from depthjepa.evaluation.features import Pooled, PooledParts
from depthjepa.evaluation.tokens import KeptTokens
from depthjepa.evaluation.trained_probes import mlp, sweep
from depthjepa.run.memory import peak_bytes
from elsewhere import ELSEWHERE, Elsewhere

CPU = torch.device("cpu")
CLASSES, WIDTH = 7, 24
MIB = 2**20


def planted(count: int, seed: int, classes: int = CLASSES, width: int = WIDTH) -> Pooled:
    """Classes around their centres, which overlap."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=draw)
    values = 3 + centres[labels] + 1.6 * torch.randn(count, width, generator=draw)
    return Pooled(values, labels, tuple(map(str, range(count))))


def there(pooled: Pooled) -> Pooled:
    return Pooled(pooled.values.to(ELSEWHERE), pooled.labels, pooled.names)


@pytest.fixture
def sets() -> tuple[Pooled, Pooled]:
    return planted(600, 1), planted(301, 2)


def test_the_device_that_is_not_there_refuses_what_a_device_refuses() -> None:
    with Elsewhere():
        moved = torch.arange(6.0).to(ELSEWHERE)
        assert moved.device == ELSEWHERE and (moved * 2 + moved.sum()).cpu().tolist() == [15, 17, 19, 21, 23, 25]
        assert torch.zeros(2, device=ELSEWHERE).device == ELSEWHERE
        with pytest.raises(AssertionError, match="two devices"):
            moved + torch.zeros(6)
        with pytest.raises(AssertionError, match="index on the device"):
            torch.zeros(9)[moved.long()]


def test_figures_are_those_that_were_noted(sets: tuple[Pooled, Pooled]) -> None:
    """Noted before the fits moved to the features' device; shares of a few hundred images are the same everywhere."""
    train, test = sets
    right = {k: int((found == test.labels).sum()) for k, found in knn_predictions(train, test, (1, 20, 1000)).items()}
    assert right == {1: 230, 20: 251, 1000: 256}
    found = linear(train, test, seed=3)
    assert (found.train_accuracy, found.val_accuracy, found.weight_decay) == (578 / 600, 265 / 301, 0.003)
    assert sweep(train, test, 12, epochs=4, seed=2).val_accuracy == pytest.approx(254 / 301, abs=0.01)
    assert mlp(train, test, WIDTH, epochs=5, seed=2).val_accuracy[-1] == pytest.approx(254 / 301, abs=0.01)


def test_neighbours_are_found_where_the_features_are(sets: tuple[Pooled, Pooled]) -> None:
    train, test = sets
    here = knn_predictions(train, test, (1, 20, 1000))
    with Elsewhere():
        found = knn_predictions(there(train), there(test), (1, 20, 1000))
        assert all(found[k].device == CPU and found[k].equal(here[k]) for k in here)
        for cosine, nearest in nearest_images(there(train), there(test), 3):
            assert cosine.device == nearest.device == ELSEWHERE


@pytest.mark.slow
def test_logistic_regression_is_fitted_where_the_features_are(sets: tuple[Pooled, Pooled]) -> None:
    here = linear(*sets, seed=3)
    with Elsewhere():
        found = linear(there(sets[0]), there(sets[1]), seed=3)
    assert found.predictions.device == CPU and found.predictions.equal(here.predictions)
    assert (found.train_accuracy, found.weight_decay) == (here.train_accuracy, here.weight_decay)


def test_probes_that_are_trained_are_trained_where_the_features_are(
    sets: tuple[Pooled, Pooled], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = [ELSEWHERE.type, "cpu"]  # devices whose AdamW is one kernel
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: fused)
    here = sweep(*sets, 12, epochs=2), mlp(*sets, WIDTH, epochs=2)
    with Elsewhere():
        moved = there(sets[0]), there(sets[1])
        found = sweep(*moved, 12, epochs=2), mlp(*moved, WIDTH, epochs=2)
    assert found[0] == here[0]
    assert (found[1].val_accuracy == here[1].val_accuracy).all()


def test_attentive_pooling_is_trained_where_the_tokens_are() -> None:
    train, test = planted(60, 1), planted(40, 2)

    def tokens(pooled: Pooled, device: torch.device) -> KeptTokens:
        values = pooled.values[:, None].expand(-1, 3, -1).half()
        return KeptTokens(values, torch.zeros(WIDTH), torch.ones(WIDTH), device)

    here = attentive((train, tokens(train, CPU)), (test, tokens(test, CPU)), epochs=2)
    with Elsewhere():
        pairs = ((there(each), tokens(each, ELSEWHERE)) for each in (train, test))
        found = attentive(*pairs, epochs=2)
    assert found.predictions.equal(here.predictions)


@pytest.mark.slow
def test_of_two_sets_one_may_be_too_large_for_the_device(sets: tuple[Pooled, Pooled]) -> None:
    train, test = sets
    here = knn_predictions(train, test, (20,))[20], linear(train, test, seed=3).predictions
    with Elsewhere():
        for one, other in ((train, there(test)), (there(train), test)):
            assert knn_predictions(one, other, (20,))[20].equal(here[0])
            assert linear(one, other, seed=3).predictions.equal(here[1])


@pytest.mark.parametrize(("room", "device"), [(40 * WIDTH * 4, ELSEWHERE), (39 * WIDTH * 4, CPU), (5, CPU)])
def test_means_stay_on_the_device_up_to_a_bound(
    room: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "ON_DEVICE", room)
    pooled = planted(40, 0)
    with Elsewhere():
        parts = PooledParts()
        for part, labels in zip(pooled.values.split(16), pooled.labels.split(16), strict=True):
            parts.add(batch_of(labels), part[:, None].to(ELSEWHERE))
        joined = parts.joined()
        assert joined.values.device == device and joined.labels.device == CPU
        assert joined.values.cpu().equal(pooled.values)


def batch_of(labels: Tensor) -> Batch:
    count = len(labels)
    return Batch(torch.arange(count), torch.zeros(count, 3, 1, 1), None, torch.ones(count), labels)


def test_a_fit_in_parts_is_the_fit_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    train = planted(600, 1)
    values, start = train.values - 3, torch.zeros(CLASSES, WIDTH + 1)
    whole = fit_logistic(values, train.labels, 0.01, start)
    monkeypatch.setattr(classification, "SCORES", 100 * CLASSES + 3)  # seven parts, the last a shorter one
    assert len(list(classification.parts(values[:599], CLASSES, CPU))) == 6
    torch.testing.assert_close(fit_logistic(values, train.labels, 0.01, start), whole, atol=2e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 500])
def test_fits_take_what_they_say(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the training features twice their bytes, and a few times the bound of what is held at a time."""
    monkeypatch.setattr(classification, "SCORES", MIB // 4)
    monkeypatch.setattr(classification, "SIMILARITIES", MIB // 4)
    monkeypatch.setattr(classification, "WEIGHT_DECAYS", (1.0,))
    train, test = planted(8000, 1, classes, 64), planted(2000, 2, classes, 64)
    own, weights = train.values.nbytes, 4 * classes * 65
    assert peak_bytes(lambda: knn_predictions(train, test, (10,))) < 2 * own + 4 * MIB
    # L-BFGS holds ten steps and ten changes of the gradient, and what it makes of them.
    assert peak_bytes(lambda: linear(train, test)) < 2 * own + 4 * MIB + 32 * weights


def test_votes_for_many_classes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "SIMILARITIES", MIB // 4)
    train, test = planted(40, 1, classes=5000), planted(2000, 2, classes=5000)
    assert peak_bytes(lambda: knn_predictions(train, test, (10,))) < 4 * MIB
