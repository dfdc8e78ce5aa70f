"""Probes that are trained by steps: the sweep chooses on training images alone, the head is followed by the epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa.evaluation.features import Pooled
from depthjepa.evaluation.trained_probes import SETTINGS, Setting, mlp, sweep
from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder
from tiny_images import write_classes
from tiny_runs import Call, run

WIDTH = 8


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pooled(values: Tensor, labels: Tensor) -> Pooled:
    return Pooled(values, labels, tuple(str(number) for number in range(len(labels))))


def blobs(count: int, seed: int, told: slice) -> Pooled:
    """Three classes that the channels `told` tell apart, of two layers side by side."""
    labels = torch.arange(count) % 3
    values = noise(seed, count, 2 * WIDTH)
    values[:, told] += 3 * noise(99, 3, WIDTH)[labels]
    return pooled(values, labels)


def test_a_setting_is_chosen_for_what_it_reads() -> None:
    """Where only an earlier layer tells the classes apart, the layers side by side win; else the last one will do."""
    settings = [Setting("last", 1e-2, 0.0), Setting("last four", 1e-2, 0.0)]
    early = [blobs(150, seed, slice(0, WIDTH)) for seed in (0, 1)]
    found = sweep(*early, WIDTH, epochs=20, settings=settings)
    assert found.chosen.layers == "last four" and found.val_accuracy > 0.9
    assert found.held_out[settings[0]] < 0.6
    late = [blobs(150, seed, slice(WIDTH, 2 * WIDTH)) for seed in (0, 1)]
    assert sweep(*late, WIDTH, epochs=20, settings=settings[:1]).val_accuracy > 0.9


def test_settings_that_learn_together_learn_as_each_would_alone() -> None:
    train, test = (blobs(90, seed, slice(WIDTH, 2 * WIDTH)) for seed in (0, 1))
    settings = [Setting("last", 1e-3, 0.0), Setting("last four", 1e-1, 5e-4), Setting("last", 1e-4, 5e-4)]
    together = sweep(train, test, WIDTH, epochs=5, settings=settings).held_out
    for setting in settings:
        alone = sweep(train, test, WIDTH, epochs=5, settings=[setting])
        assert alone.held_out[setting] == together[setting]


def test_no_validation_image_takes_part_in_a_choice() -> None:
    train, test = (blobs(90, seed, slice(0, WIDTH)) for seed in (0, 1))
    other = pooled(noise(5, 90, 2 * WIDTH), test.labels)
    settings = SETTINGS[::5]
    assert sweep(train, test, WIDTH, epochs=5, settings=settings).chosen == (
        sweep(train, other, WIDTH, epochs=5, settings=settings).chosen
    )


def test_a_rate_that_has_learned_nothing_yet_is_not_chosen() -> None:
    train, test = (blobs(90, seed, slice(0, WIDTH)) for seed in (0, 1))
    settings = [Setting("last four", 1e-6, 0.0), Setting("last four", 0.1, 0.0)]
    assert sweep(train, test, WIDTH, epochs=30, settings=settings).chosen.lr == 0.1


def test_the_head_is_followed_by_the_epoch_and_reads_the_last_layer() -> None:
    train, test = (blobs(300, seed, slice(WIDTH, 2 * WIDTH)) for seed in (0, 1))
    found = mlp(train, test, WIDTH, epochs=12, seed=3)
    assert found.train_accuracy.shape == found.val_accuracy.shape == (12,)
    assert found.val_accuracy[-1] > 0.9 and found.train_accuracy[-1] >= found.train_accuracy[0]
    again = mlp(train, test, WIDTH, epochs=12, seed=3)
    assert np.array_equal(found.val_accuracy, again.val_accuracy)
    blind = mlp(*(blobs(300, seed, slice(0, WIDTH)) for seed in (0, 1)), WIDTH, epochs=12)
    assert blind.val_accuracy[-1] < 0.5
    # Labels that mean nothing are learned by heart: what training accuracy alone would hide.
    torch.manual_seed(0)
    shuffled = replace(train, labels=train.labels[torch.randperm(300)])
    by_heart = mlp(shuffled, test, WIDTH, epochs=100)
    assert by_heart.train_accuracy[-1] > 0.5 and by_heart.val_accuracy[-1] < 0.45


def test_a_head_that_reads_features_as_they_are_learns_nothing_of_small_differences() -> None:
    """What a collapsed encoder leaves: one constant and a thousandth that tells the classes."""
    train, test = (blobs(300, seed, slice(0, WIDTH)) for seed in (0, 1))
    faint = [pooled(1 + 1e-3 * each.values[:, :WIDTH], each.labels) for each in (train, test)]
    raw = mlp(*faint, WIDTH, epochs=12, standardised=False)
    assert mlp(*faint, WIDTH, epochs=12).train_accuracy[-1] > 0.9
    assert raw.train_accuracy[-1] < 0.5
    plain = [pooled(each.values[:, :WIDTH], each.labels) for each in (train, test)]
    assert mlp(*plain, WIDTH, epochs=12, standardised=False).val_accuracy[-1] > 0.9


def test_too_few_images_are_refused() -> None:
    few = pooled(noise(0, 4, WIDTH), torch.tensor([0, 1, 0, 1]))
    for probe in (mlp, sweep):
        with pytest.raises(BadInput, match="at least 5 training images"):
            probe(few, few, WIDTH)


def test_through_the_command_line(tmp_path: Path, call: Call) -> None:
    root = write_classes(tmp_path / "classes")
    run(root, tmp_path / "run", "train.steps=1")
    status, output, _ = call("probe", tmp_path / "run", "mlp", "evaluation.probe_epochs=3")
    assert status == 0 and "mlp on" in output
    table = RunFolder(tmp_path / "run").probe("mlp")
    assert [row["name"] for row in table["rows"]] == ["chance", "random encoder", "tiny"]
    assert "3 epochs" in table["protocol"]
    with np.load(tmp_path / "run" / "probes" / "mlp.npz") as arrays:
        assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(
            (f"{row}{raw}{split}" for row in ("", "random_") for raw in ("", "raw_") for split in ("train", "val")),
            (3,),
        )
        assert 100 * arrays["val"][-1] == pytest.approx(table["rows"][2]["val_accuracy"])
        assert 100 * arrays["raw_train"][-1] == pytest.approx(table["rows"][2]["raw_train_accuracy"])
    status, output, _ = call(
        "probe", tmp_path / "run", "linear", "evaluation.linear_protocol=sweep", "evaluation.probe_epochs=3"
    )
    assert status == 0
    swept = RunFolder(tmp_path / "run").probe("linear-sweep")
    assert swept["rows"][2]["setting"].startswith("last") and "last 2 layers" in swept["protocol"]
    assert not (tmp_path / "run" / "probes" / "linear.json").exists()  # runs are compared by the other protocol
