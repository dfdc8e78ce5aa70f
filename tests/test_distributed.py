"""Several processes do together what one does alone, and none waits for ever for another."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depthjepa import cost, distributed
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.distributed import Ranks
from depthjepa.evaluation.during_training import probe_during_training
from depthjepa.faults import RunStopped
from depthjepa.logbook import RunFolder
from depthjepa.runtime import environment
from tiny_images import write_pairs
from tiny_runs import (
    GUIDED,
    Call,
    free_port,
    metrics,
    recipe_file,
    run,
    same_losses,
    settings,
    start,
    tiny,
    weights,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 5, 6])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_are_a_partition(count: int, world: int) -> None:
    shares = [list(Ranks(rank, world).share(count)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and max(map(len, shares)) == len(shares[0])


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    ranks, values, model = distributed.ranks(), torch.randn(3, 2), nn.Linear(2, 2)
    assert ranks == Ranks(0, 1, 0) and ranks.first and environment()["world"] == 1
    with distributed.process_group(ranks, CPU, 1.0):
        assert distributed.average(values, ranks) is values
        assert distributed.join(values, 3, ranks) is values
        assert distributed.gather(["a"], ranks) == ["a"] and distributed.of_first(3, ranks) == 3
        assert distributed.any_process((True, False), ranks, CPU) == [True, False]
        assert distributed.wrap(model, ranks, CPU) is model
        with distributed.adding_up(model):
            distributed.wait_for_all(ranks)


@pytest.mark.slow
def test_two_processes_share_join_agree_and_end_together(tmp_path: Path) -> None:
    port, spawn = free_port(), multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=take_part, args=(rank, port, tmp_path), daemon=True) for rank in (0, 1)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [0, 7]
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "lost.txt").read_text().startswith("process 0 of 2 has lost another one, or waited 1 minutes")


def take_part(rank: int, port: int, folder: Path) -> None:
    """One of two processes; the second one dies at the end."""
    os.environ |= settings(rank, 2, port)
    ranks = distributed.ranks()
    assert ranks == Ranks(rank, 2, rank)
    try:
        with distributed.process_group(ranks, CPU, 1.0):
            for count in (1, 2, 5):
                things = torch.arange(2.0 * count).view(count, 2)
                own = things[list(ranks.share(count))]
                assert torch.equal(distributed.join(own, count, ranks), things)
            assert float(distributed.average(torch.tensor(float(rank)), ranks)) == 0.5
            assert distributed.gather(["a", "b"][rank:], ranks) == ["a", "b", "b"]
            assert distributed.of_first({"rank": rank}, ranks) == {"rank": 0}
            assert distributed.any_process((rank == 1, False), ranks, CPU) == [True, False]
            distributed.first_writes(ranks, lambda: write_late(folder / "first.txt", rank))
            assert (folder / "first.txt").read_text() == "0"  # by the first alone, and done before any goes on
            with pytest.raises(OSError if rank == 0 else RunStopped):
                distributed.first_writes(ranks, lambda: (folder / "gone" / "file").write_text(""))
            gradients_are_averaged_but_for_those_added_up(ranks)
            rows_of_all_are_learned_from(ranks)
            if rank == 1:
                os._exit(7)
            distributed.wait_for_all(ranks)
    except RunStopped as stopped:
        (folder / "lost.txt").write_text(str(stopped))


def write_late(file: Path, rank: int) -> None:
    time.sleep(0.3)
    file.write_text(f"{rank}")


def gradients_are_averaged_but_for_those_added_up(ranks: Ranks) -> None:
    model = nn.Linear(1, 1, bias=False)
    wrapped = distributed.wrap(model, ranks, CPU)

    def backward(value: float) -> float:
        wrapped(torch.full((1, 1), value)).sum().backward()
        assert model.weight.grad is not None
        return float(model.weight.grad)

    with distributed.adding_up(wrapped):
        assert backward(1.0 + ranks.rank) == 1.0 + ranks.rank
    assert backward(10.0) == 11.5


def rows_of_all_are_learned_from(ranks: Ranks) -> None:
    """The loss of products between the rows of all processes, learned from as one process would."""
    inputs = torch.arange(8.0).view(4, 2) / 8
    torch.manual_seed(3)
    alone, shared = (nn.Linear(2, 3, bias=False) for _ in range(2))
    shared.load_state_dict(alone.state_dict())
    expected = alone(inputs)
    (expected @ expected.T).square().sum().backward()
    own = inputs[2 * ranks.rank : 2 * ranks.rank + 2]
    wrapped = distributed.wrap(shared, ranks, CPU)
    found = distributed.with_others(wrapped(own))
    torch.testing.assert_close(found, expected)
    (found @ found.T).square().sum().backward()
    torch.testing.assert_close(shared.weight.grad, alone.weight.grad)


SMALL = ("guidance.kind=none", "loss.variance=0.05", "loss.covariance=0.003", "loss.gaussian=0.01", "loss.visible=0.5",
         "loss.pixel=0.25", "predictor.blocks=together")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("world", "spread"), [(2, "images"), (2, "tokens"), (4, "both")])
def test_the_small_data_default_learns_the_same_on_several_processes(world: int, spread: str, tmp_path: Path) -> None:
    """Its terms compare the images of a batch: of the whole batch, however many processes share it."""
    settings = (
        *SMALL,
        f"loss.spread={spread}",
        "train.steps=60",
        "optim.warmup_steps=5",
        "optim.lr=2e-3",
        "evaluation.pictures=1",
    )
    recipe = recipe_file(tmp_path / "small.yaml", write_pairs(tmp_path / "pairs", 24, 0), *settings)
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m", "depthjepa")
    several = start("train", recipe, "--out", tmp_path / "several", module=launcher)
    _, errors = several.communicate(timeout=300)
    assert several.returncode == 0, errors
    one = start("train", recipe, "--out", tmp_path / "one")
    assert one.communicate(timeout=300)[1] == ""
    whole, shared = (weights(tmp_path / name)["model"] for name in ("one", "several"))
    farthest = max(float((whole[key] - shared[key]).abs().max()) for key in whole)
    moved = float((whole["context_encoder.blocks.0.mlp.fc1.weight"]).std())
    assert farthest < 1e-5 < moved, farthest


def test_a_missing_process_ends_the_run_with_a_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    recipe = recipe_file(tmp_path / "two.yaml", write_pairs(tmp_path / "pairs", 4, 2), "train.timeout_minutes=0.02")
    for name, value in settings(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    status, _, said = call("train", recipe, "--out", tmp_path / "two")
    assert status == 1
    [message] = said.splitlines()
    assert message.startswith("depthjepa: process 0 of 2 has lost another one, or waited 0.02 minutes for it in vain")
    assert "(train.timeout_minutes)" in message and "1/2 clients joined" in message
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_all_processes_train_probe_and_save_and_tell_what_one_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    pairs = write_pairs(tmp_path / "pairs", 24, 7)
    # Batches of three and of one image: a process has more, as many or none of them.
    asked = (*GUIDED, "train.steps=8", "train.probe_every=4", "train.checkpoint_every=3", "evaluation.batch_size=3")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "depthjepa")
    process = start(
        "train", recipe_file(tmp_path / "two.yaml", pairs, *asked), "--out", tmp_path / "two", module=launcher
    )
    run(pairs, tmp_path / "one", *asked)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("estimate:") == 1  # one process talks
    same_losses(tmp_path / "one", tmp_path / "two")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [list(record) for record in two] == [list(record) for record in one]
    for name in ("last", "best"):
        whole, halves = weights(tmp_path / "one", name), weights(tmp_path / "two", name)
        assert halves["step"] == whole["step"]
        for key, value in whole["model"].items():
            torch.testing.assert_close(halves["model"][key], value, rtol=1e-3, atol=1e-5)
    # The same weights probed by one process alone.
    found = load_checkpoint(tmp_path / "two")
    figures, score = probe_during_training(found.encoder(), tiny(pairs, *asked), CPU, Ranks())
    logged = [record for record in RunFolder(tmp_path / "two").metrics() if "probe_score" in record]
    assert [record["step"] for record in logged] == [4, 8]
    assert {"probe_rank_me", "probe_r2_within"} == set(figures)
    told: dict[str, Any] = {key: logged[-1][key] for key in figures}
    assert told == pytest.approx(figures, rel=1e-6, abs=1e-6)
    assert logged[-1]["probe_score"] == pytest.approx(score, rel=1e-6, abs=1e-6)
    assert isinstance(found.model["context_encoder.pos_embed"], Tensor)
