"""The attentive probe on planted cases and against a slow reference; all probes from one pass of each encoder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.samples import Batch
from depthjepa.distributed import Ranks
from depthjepa.evaluation import tokens
from depthjepa.evaluation.attentive_probe import AttentivePooler, _fit, attentive
from depthjepa.evaluation.classification import ClassifierResult, Standardiser, linear
from depthjepa.evaluation.diagnostics import diagnose
from depthjepa.evaluation.during_training import probe_during_training
from depthjepa.evaluation.features import Encode, Pooled
from depthjepa.evaluation.gathering import RANDOM, Views, features_of, views, whole_views_text
from depthjepa.evaluation.probes import Subject, classification_tables, probe
from depthjepa.evaluation.tokens import ComputedTokens, KeptTokens, TokenKeeper, Tokens
from depthjepa.faults import BadInput
from depthjepa.method import build_encoder
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import tiny

CPU = torch.device("cpu")
CLASSES, WIDTH, PLACES = 4, 24, 36


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def held(values: torch.Tensor, labels: torch.Tensor) -> tuple[Pooled, Tokens]:
    keeper = TokenKeeper(len(values), len(values))
    for part in torch.split(values, 50):
        keeper.add(part)
    kept = keeper.result()
    assert kept is not None
    return Pooled(values.mean(1), labels, tuple(map(str, range(len(labels))))), kept


def planted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of noise but one, somewhere, that tells the class; the first channel says which one it is."""
    draw = source(seed)
    codes = torch.randn(CLASSES, WIDTH, generator=source(99))
    values = torch.randn(count, PLACES, WIDTH, generator=draw)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    place = torch.randint(PLACES, (count,), generator=draw)
    values[..., 0] *= 0.3
    telling = codes[labels] + 0.3 * torch.randn(count, WIDTH, generator=draw)
    telling[:, 0] = 5
    values[torch.arange(count), place] = telling
    return values, labels


def trained(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], seed: int = 0
) -> ClassifierResult:
    return attentive(held(*train), held(*test), lr=0.01, seed=seed)


def test_one_telling_token_among_noise_is_found_where_the_mean_hides_it() -> None:
    train, test = planted(600, 0), planted(300, 1)
    assert linear(held(*train)[0], held(*test)[0]).val_accuracy < 0.5
    found = trained(train, test)
    assert found.val_accuracy > 0.98 and found.train_accuracy > 0.98
    assert found.predictions.eq(test[1]).double().mean() == found.val_accuracy


def test_shuffled_labels_give_chance_and_are_held_hard() -> None:
    values, labels = planted(600, 0)
    found = trained((values, labels[torch.randperm(600, generator=source(3))]), planted(600, 1))
    assert abs(found.val_accuracy - 1 / CLASSES) < 0.06
    assert found.weight_decay >= 10
    assert trained((values, labels), planted(600, 1)).weight_decay < 10


def test_the_seed_decides_everything_and_validation_images_decide_nothing() -> None:
    train, (values, labels) = planted(200, 0), planted(100, 1)
    state = torch.get_rng_state()
    first = trained(train, (values, labels))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = trained(train, (values, (labels + 1) % CLASSES))
    assert first.predictions.equal(again.predictions)
    assert (first.train_accuracy, first.weight_decay) == (again.train_accuracy, again.weight_decay)
    scores = [attentive(held(*train), held(values, labels), epochs=1, seed=seed).predictions for seed in (0, 1)]
    assert not scores[0].equal(scores[1])


def test_scale_and_offset_of_channels_do_not_matter() -> None:
    train, test = planted(200, 0), planted(100, 1)
    size, offset = torch.logspace(-3, 3, WIDTH), torch.linspace(-50, 50, WIDTH)
    changed = [(values * size + offset * size, labels) for values, labels in (train, test)]
    same = trained(train, test).predictions == trained(changed[0], changed[1]).predictions
    assert same.double().mean() > 0.97


def test_a_dead_channel_is_not_read() -> None:
    train, test = planted(200, 0), planted(100, 1)
    dead = []
    for (values, labels), level in ((train, 0.1), (test, 1e4)):
        values = values.clone()
        values[..., -1] = level
        dead.append((values, labels))
    assert trained(dead[0], dead[1]).val_accuracy > 0.9


def test_the_pooler_is_cross_attention_head_by_head() -> None:
    values = 3 + 2 * torch.randn(5, 7, WIDTH, generator=source())
    flat = values.flatten(0, 1)
    pooler = AttentivePooler(Standardiser.of(flat), CLASSES).double().eval()
    pooler.standard = Standardiser(pooler.standard.mean.double(), pooler.standard.inverse_deviation.double())
    with torch.no_grad():
        assert torch.allclose(pooler.attention(values.double()), torch.tensor(1 / 7, dtype=torch.float64))
        for parameter in pooler.parameters():
            parameter.normal_(generator=source(4))
    queries, projections, heads, share = pooler.queries.detach(), pooler.values.detach(), 12, WIDTH // 12
    assert pooler.queries.shape == (heads, WIDTH)
    standard = (values.double() - flat.double().mean(0)) / flat.double().std(0, correction=0)
    expected = torch.zeros(5, CLASSES, dtype=torch.float64)
    for image in range(5):
        joined = []
        for head in range(heads):
            weights = [math.exp(float(token @ queries[head])) for token in standard[image]]
            for channel in range(share):
                projected = [float(token @ projections[head, channel]) for token in standard[image]]
                joined.append(sum(w * v for w, v in zip(weights, projected, strict=True)) / sum(weights))
        normalised = torch.tensor(joined, dtype=torch.float64) / math.sqrt(1 + pooler.norm.eps)  # no walk yet
        expected[image] = (normalised @ pooler.classifier.T + pooler.bias).detach()
    torch.testing.assert_close(pooler(values.double()).detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_last_normalisation_is_that_of_the_final_weights() -> None:
    pooled, kept = held(*planted(100, 0))
    (pooler,) = _fit(kept, pooled.labels, torch.arange(100), CLASSES, (0.1,), epochs=20, lr=0.01, seed=0)
    seen: list[torch.Tensor] = []
    pooler.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for batch in kept.parts([torch.arange(100)]):
        pooler(batch)
    assert pooler.norm.running_mean is not None and pooler.norm.running_var is not None
    torch.testing.assert_close(pooler.norm.running_var, seen[0].var(0), rtol=0.02, atol=0)
    torch.testing.assert_close(pooler.norm.running_mean, seen[0].mean(0), rtol=0, atol=0.01)


def test_sets_that_cannot_be_probed_attentively_are_refused() -> None:
    train = held(*planted(20, 0))
    with pytest.raises(BadInput, match="no label"):
        attentive(train, held(planted(20, 1)[0], torch.full((20,), -1)))
    with pytest.raises(BadInput, match="at least 5"):
        attentive(held(*planted(4, 0)), train)


def test_kept_tokens_have_the_digits_of_their_deviation_whatever_their_mean() -> None:
    values = torch.randn(40, 9, 6, generator=source()) * torch.tensor([1, 1e-3, 1e3, 1, 0, 1]) + torch.tensor(
        [0, 5, -2e5, 1e4, 7, 0]
    )
    values[30:, :, 5] += 1e6  # beyond what half precision holds in the units of the first batch
    keeper = TokenKeeper(40, 40)
    for part in torch.split(values, 20):
        keeper.add(part)
    kept = keeper.result()
    assert kept is not None
    (found,) = kept.parts([torch.arange(39, -1, -1)])
    error = (found.flip(0) - values).abs().amax((0, 1))
    assert (error[:4] < 4e-3 * torch.tensor([1, 1e-3, 1e3, 1])).all() and error[4] == 0
    assert torch.isfinite(found).all()
    assert kept.values.dtype == torch.float16


def test_tokens_without_room_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(10, 3, 4, generator=source())
    for room, kept in ((2 * 15 * 12, True), (2 * 15 * 12 - 1, False)):
        monkeypatch.setattr(tokens, "KEPT_BYTES", room)
        keeper = TokenKeeper(10, 15)
        keeper.add(values[:6])
        keeper.add(values[6:])
        assert (keeper.result() is not None) == kept


def numbered(numbers: torch.Tensor) -> Iterator[Batch]:
    """Images that show their number, six a batch."""
    for part in torch.split(numbers, 6):
        images = part[:, None, None, None].expand(-1, 3, 2, 2).float()
        yield Batch(part, images, None, torch.ones(len(part)), part)


def test_computed_tokens_are_cut_into_any_parts() -> None:
    values = torch.randn(20, 3, 4, generator=source())
    index = torch.arange(20).flip(0)  # place 0 is image 19

    def encode(images: torch.Tensor) -> torch.Tensor:
        return values[images[:, 0, 0, 0].long()]

    computed = ComputedTokens(encode, numbered, index)
    order = torch.randperm(20, generator=source(1))
    parts = torch.split(order, 7)
    found = list(computed.parts(parts))
    assert [len(part) for part in found] == [7, 7, 6]
    assert torch.equal(torch.cat(found), values[19 - order])
    gone = ComputedTokens(encode, lambda numbers: numbered(numbers[:-1]), index)
    with pytest.raises(BadInput, match="changed while"):
        list(gone.parts(parts))


def test_the_probe_does_not_see_whether_tokens_are_kept() -> None:
    (train, kept), test = held(*planted(150, 0)), held(*planted(100, 1))
    (values,) = kept.parts([torch.arange(150)])
    computed = ComputedTokens(lambda images: values[images[:, 0, 0, 0].long()], numbered, torch.arange(150))
    one, other = (attentive((train, each), test, epochs=3) for each in (kept, computed))
    assert one.predictions.equal(other.predictions) and one.train_accuracy == other.train_accuracy


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 24 validation images of two classes, and three files that are none."""
    root = write_classes(tmp_path_factory.mktemp("data") / "classes")
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        for number in numbers:
            (root / split / "red" / f"broken-{number}.png").write_bytes(b"no picture")
    return root


def config_of(root: Path, *overrides: str) -> RunConfig:
    return tiny(root, "evaluation.attentive_epochs=4", "evaluation.attentive_lr=0.01", *overrides)


def counted(encode: Encode, seen: Counter[float]) -> Encode:
    def count(images: torch.Tensor) -> torch.Tensor:
        seen.update(float(image.double().sum()) for image in images)
        return encode(images)

    return count


def test_all_tables_come_from_one_pass_and_say_what_single_probes_say(classes: Path) -> None:
    config = config_of(classes, "evaluation.neighbours=[3,500]", "evaluation.batch_size=7")
    encoder = build_encoder(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    seen: Counter[float] = Counter()
    named = {name: counted(encode, seen) for name, encode in Subject(config, encoder, CPU).encoders().items()}
    found = {task: result.table for task, result in classification_tables(config, named).items()}
    assert len(seen) == 48 and set(seen.values()) == {2}  # every image once by each of two encoders
    assert list(found) == ["knn", "linear", "mlp", "attentive", "diagnose"]
    for task in ("knn", "linear", "mlp", "attentive"):
        assert found[task] == probe(task, config, encoder, CPU).table
        assert [row["name"] for row in found[task]["rows"]] == ["chance", RANDOM, config.name]
        assert "; 24 training and 24 validation images at 48 px; 3 unreadable left out" in found[task]["protocol"]
    assert found["diagnose"] == probe("diagnose", config, encoder, CPU).table
    assert found["diagnose"]["protocol"].endswith("on 24 images at 48 px; width 32; 1 unreadable left out")
    assert [column["key"] for column in found["knn"]["columns"]] == ["val_accuracy_3", "val_accuracy_500"]
    assert found["knn"]["rows"][0] == {"name": "chance", "val_accuracy_3": 50.0, "val_accuracy_500": 50.0}
    assert found["attentive"]["rows"][2]["val_accuracy"] > 90  # red against blue

    val = Views(config, "val")
    trained_encoder = Subject(config, encoder, CPU).encoders()[config.name]
    figures = diagnose(
        lambda images: F.layer_norm(trained_encoder(images), (32,)), views(config, val.source, limit=None)
    )
    assert found["diagnose"]["rows"][1] == {"name": config.name, **figures}


def test_nearest_images_are_shown_for_each_encoder_and_framed_by_class(classes: Path) -> None:
    config = config_of(classes, "evaluation.batch_size=7")

    def colour(images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, None].expand(-1, 4, -1).contiguous()

    def nothing(images: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(images), 4, 3, generator=source(int(images.sum())))

    shown = classification_tables(config, {RANDOM: nothing, "a": colour}, ["knn"])["knn"].arrays
    assert shown["images"].shape == (4, 48, 48, 3) and shown["found"].shape == (4, 6, 48, 48, 3)
    assert shown["alike"].all() and not shown["random_alike"].all()  # red against blue
    assert "random_images" not in shown
    red = shown["images"][..., 0].mean((1, 2)) > shown["images"][..., 2].mean((1, 2))
    found = shown["found"][..., 0].mean((2, 3)) > shown["found"][..., 2].mean((2, 3))
    np.testing.assert_array_equal(found, np.repeat(red[:, None], 6, 1))
    held = build_encoder(config)
    result = probe("knn", config, held, CPU)
    assert {"images", "found", "alike", "random_found", "random_alike"} <= set(result.arrays)


def test_tokens_that_do_not_fit_give_the_same_table(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(classes)
    encoder = build_encoder(config)
    seen: Counter[float] = Counter()
    named = {"encoder": counted(Subject(config, encoder, CPU).encoders()[RANDOM], seen)}
    kept = classification_tables(config, named, ["attentive"])["attentive"].table
    assert set(seen.values()) == {1}
    monkeypatch.setattr(tokens, "KEPT_BYTES", 0)
    computed = classification_tables(config, named, ["attentive"])["attentive"].table
    assert max(seen.values()) == 1 + 1 + 2 * 4 + 3  # once to begin with, 2 x epochs, and what is walked over besides
    assert kept == computed


def test_features_of_an_encoder_are_the_same_kept_or_computed(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(classes)
    encoder = build_encoder(config)
    kept, _ = features_of(config, encoder, CPU)
    monkeypatch.setattr(tokens, "KEPT_BYTES", 0)
    computed, computed_val = features_of(config, encoder, CPU)
    assert isinstance(kept.tokens, KeptTokens) and isinstance(computed.tokens, ComputedTokens)
    places = torch.split(torch.randperm(24, generator=source()), 5)
    for one, other in zip(kept.tokens.parts(places), computed.tokens.parts(places), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4e-3)
    (first,) = computed.tokens.parts([torch.arange(24)])
    torch.testing.assert_close(first.mean(1), computed.pooled.values)
    assert computed_val.pooled.labels.tolist() == [0] * 12 + [1] * 12
    assert features_of(config, encoder, CPU, tokens=False)[0].tokens is None


def test_verdicts_name_their_encoder_where_there_are_several(classes: Path) -> None:
    config = config_of(classes)
    healthy = Subject(config, build_encoder(config), CPU).encoders()[RANDOM]

    def constant(images: torch.Tensor) -> torch.Tensor:
        return torch.arange(32.0).expand(len(images), 36, 32)

    one = classification_tables(config, {RANDOM: healthy, "a": constant}, ["diagnose"])["diagnose"].table["verdict"]
    two = classification_tables(config, {RANDOM: healthy, "a": constant, "b": constant}, ["diagnose"])["diagnose"].table
    assert len(one) == 3 and one[0].startswith("dimensional collapse")
    assert two["verdict"] == [f"a: {sentence}" for sentence in one] + [f"b: {sentence}" for sentence in one]
    assert classification_tables(config, {"a": constant}, ["diagnose"])["diagnose"].table["verdict"] == []


def test_diagnostics_need_no_labels_and_the_others_do(tmp_path: Path) -> None:
    config = config_of(write_flat(tmp_path / "flat", 6, 48))
    encoder = build_encoder(config)
    assert probe("diagnose", config, encoder, CPU).value(config.name, "images") == 6
    for task in ("knn", "linear", "mlp", "attentive"):
        with pytest.raises(BadInput, match="needs labels"):
            probe(task, config, encoder, CPU)
    with pytest.raises(BadInput, match="did you mean 'linear'"):
        classification_tables(config, Subject(config, encoder, CPU).encoders(), ["liner"])


def test_the_depth_table_counts_what_it_could_not_read(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "pairs", train_images=8, val_images=4)
    (root / "train" / "rgb" / "0003.png").write_bytes(b"no picture")
    config = config_of(root)
    table = probe("depth", config, build_encoder(config), CPU).table
    assert "; 7 training and 4 validation images, whole views at 48 px; 1 unreadable left out" in table["protocol"]


def test_metres_of_unknown_cameras_are_called_relative(tmp_path: Path) -> None:
    known, unknown = (write_pairs(tmp_path / name, train_images=8, val_images=4) for name in ("known", "unknown"))
    (known / "dataset.json").write_text('{"focal_length": 40}')
    for data, relative in ((f"{known}", False), (f"{unknown}", True), (f"{known},{unknown}", True), ("scenes", False)):
        config = config_of(Path(data))
        train, val = Views(config, "train"), Views(config, "val")
        assert ("relative" in whole_views_text(train, val)) == relative, data


def test_probing_during_training_ranks_by_the_middle_number_of_neighbours(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(classes, "evaluation.neighbours=[1,5,24]")
    encoder = build_encoder(config)
    figures, score = probe_during_training(encoder, config, CPU, Ranks())
    table = probe("knn", config, encoder, CPU)
    assert score == figures["probe_knn"] == pytest.approx(table.value(RANDOM, "val_accuracy_5") / 100)
    rank = probe("diagnose", config, encoder, CPU).value(config.name, "rank_me")
    assert figures["probe_rank_me"] == pytest.approx(rank)
    alone = replace(config, evaluation=replace(config.evaluation, neighbours=(5,)))
    assert probe_during_training(encoder, alone, CPU, Ranks())[1] == score


def test_probing_during_training_takes_few_images_of_one_of_several_data_sets() -> None:
    """A small data set beside a large one has next to none of those that are read then."""
    few = ("evaluation.train_images=8", "evaluation.val_images=8", "data.scenes_train=8", "data.scenes_val=8")
    config = config_of(Path("scenes:0,rooms:1"), *few)
    figures, score = probe_during_training(build_encoder(config), config, CPU, Ranks())
    assert score == figures["probe_r2_within"] and np.isfinite(score)


def test_neighbours_are_one_number_or_several(tmp_path: Path) -> None:
    for given, found in (("3", (3,)), ("[100,10,20]", (10, 20, 100)), ("[7]", (7,))):
        config = tiny(tmp_path, f"evaluation.neighbours={given}")
        assert config.evaluation.neighbours == found
        assert to_mapping(config)["evaluation"]["neighbours"] == list(found)
    for wrong in ("[]", "[3,3]", "0", "[0]", "few", "1.5"):
        with pytest.raises(BadInput, match=r"evaluation\.neighbours"):
            tiny(tmp_path, f"evaluation.neighbours={wrong}")
