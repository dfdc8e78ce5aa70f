"""A run is the very same run however it is cut, split or resumed, and it stops before it corrupts anything."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from depthjepa import cli, cost, runtime, training
from depthjepa.backbones.opening import load_encoder
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.teachers.ground_truth import DepthTeacher
from depthjepa.logbook import RunFolder
from depthjepa.losses import Latents
from depthjepa.run.checks import parts_note
from tiny_images import picture, save, write_classes, write_flat, write_pairs
from tiny_runs import (
    GUIDED,
    differences,
    lines,
    metrics,
    recipe_file,
    run,
    same_losses,
    start,
    tiny,
    wait_for,
    weights,
)


@pytest.fixture(autouse=True)
def quick_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], object]], None]]:
    """Do something at the beginning of the step of that number (the first is 1)."""
    deeds: dict[int, Callable[[], object]] = {}
    step = training.train_step

    def watched(state: Any, parts: list[Batch]) -> dict[str, Any]:
        deeds.get(state.step + 1, lambda: None)()
        figures: dict[str, Any] = step(state, parts)
        return figures

    monkeypatch.setattr(training, "train_step", watched)
    yield deeds.__setitem__


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command line in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["depthjepa", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


# the losses themselves


def test_the_loss_is_the_weighted_sum_of_its_parts_and_both_fall(pairs: Path, tmp_path: Path) -> None:
    summary = run(pairs, tmp_path / "run", *GUIDED, "train.steps=48", "optim.lr=3e-3", "optim.momentum=0.9")
    records = metrics(tmp_path / "run")
    for record in records:
        assert record["loss"] == pytest.approx(record["loss_jepa"] + 0.5 * record["loss_depth"], rel=1e-5)

    def late(key: str) -> float:
        return sum(record[key] for record in records[-12:]) / 12

    assert late("loss_jepa") < records[0]["loss_jepa"]
    # At first the head says nothing: its loss is the floor of the constant prediction, up to the crops.
    assert records[0]["loss_depth"] == pytest.approx(summary["depth_floor"], rel=0.3)
    assert late("loss_depth") < 0.95 * summary["depth_floor"]


def test_metrics_summary_and_folder_are_what_the_design_says(pairs: Path, tmp_path: Path) -> None:
    summary = run(pairs, tmp_path / "run", *GUIDED, "train.steps=5", "train.log_every=2")
    records = RunFolder(tmp_path / "run").metrics()
    assert [(record["step"], record["epoch"]) for record in records] == [(2, 0), (4, 1), (5, 1)]
    keys = {"step", "epoch", "loss", "loss_jepa", "loss_depth", "lr", "weight_decay", "momentum", "grad_norm"}
    for record in records:
        assert record.keys() >= keys | {"images_per_second"}
        assert all(math.isfinite(value) for value in record.values())
    for name in ("config.yaml", "environment.json", "summary.json", "checkpoints/last.pt"):
        assert (tmp_path / "run" / name).is_file()
    for name in ("masks", "features", "guidance"):
        assert (tmp_path / "run" / "figures" / f"{name}.npz").is_file()
    assert RunFolder(tmp_path / "run").summary() == summary
    assert (summary["steps"], summary["images"]) == (5, 24)
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_twins_see_the_same_images_and_masks_and_start_from_the_same_weights(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Batch]] = {"guided": [], "unguided": []}
    step = training.train_step
    for name, settings in (("guided", GUIDED), ("unguided", ())):

        def watched(state: Any, parts: list[Batch], batches: list[Batch] = seen[name]) -> dict[str, Any]:
            batches += parts
            figures: dict[str, Any] = step(state, parts)
            return figures

        monkeypatch.setattr(training, "train_step", watched)
        run(pairs, tmp_path / name, *settings, "train.steps=4")
    for guided, unguided in zip(seen["guided"], seen["unguided"], strict=True):
        assert guided.names == unguided.names
        assert torch.equal(guided.images, unguided.images)
        assert guided.masks is not None and unguided.masks is not None
        assert torch.equal(guided.masks.context, unguided.masks.context)
        assert torch.equal(guided.masks.targets, unguided.masks.targets)
    first, second = metrics(tmp_path / "guided"), metrics(tmp_path / "unguided")
    assert first[0]["loss_jepa"] == second[0]["loss_jepa"]
    assert first[3]["loss_jepa"] != second[3]["loss_jepa"]
    assert "loss_depth" not in second[0]


def test_accumulated_parts_train_as_the_whole_batch_does(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "whole", *GUIDED, "train.steps=12")
    run(pairs, tmp_path / "parts", *GUIDED, "train.steps=12", "train.accumulate=2")
    same_losses(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "world", "said"),
    [
        ((), 1, ""),
        (("train.accumulate=2",), 1, ""),
        (("loss.variance=1",), 4, ""),
        (("train.accumulate=2", "loss.variance=1", "loss.gaussian=1"), 1,
         "train.accumulate=2: loss.variance and loss.gaussian compare the 4 images of a part of a step, not all 8: "
         "another objective than in one part"),
        ((*GUIDED, "guidance.control=mean"), 2,
         "guidance.control=mean is drawn from the 4 images that a process has at a time: another objective than in one "
         "part"),
    ],
)  # fmt: skip
def test_an_objective_that_depends_on_the_parts_of_a_step_is_told(
    settings: tuple[str, ...], world: int, said: str
) -> None:
    assert parts_note(tiny(Path("scenes"), *settings), world) == said


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one_does(pairs: Path, tmp_path: Path, accumulate: int) -> None:
    settings = (*GUIDED, "train.steps=20")
    recipe = recipe_file(tmp_path / "two.yaml", pairs, *settings, f"train.accumulate={accumulate}")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "depthjepa")
    process = start("train", recipe, "--out", tmp_path / "two", module=launcher)
    run(pairs, tmp_path / "one", *settings)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("estimate:") == 1  # one process talks
    same_losses(tmp_path / "one", tmp_path / "two")
    whole, halves = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in whole["model"].items():
        torch.testing.assert_close(halves["model"][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["pairs", "classes"])
def test_the_supervised_ceiling_learns_from_depth_or_labels(pairs: Path, tmp_path: Path, kind: str) -> None:
    root = pairs if kind == "pairs" else write_classes(tmp_path / "classes")
    settings = ("train.objective=supervised", "train.steps=30", "optim.lr=3e-3")
    summary = run(root, tmp_path / "run", *settings)
    term = "loss_depth" if kind == "pairs" else "loss_classes"
    records = metrics(tmp_path / "run")
    assert {key for key in records[0] if key.startswith("loss")} == {"loss", term}
    assert summary[term] < 0.9 * records[0][term]
    target, context = (load_encoder(tmp_path / "run", which) for which in ("target", "context"))
    assert differences(dict(target.state_dict()), dict(context.state_dict())) == []  # it has one encoder


# stopping and going on


@pytest.mark.parametrize("setting", [(), ("train.accumulate=2", "data.workers=2")])
def test_a_stopped_and_resumed_run_is_bit_by_bit_the_run_in_one_go(
    pairs: Path,
    tmp_path: Path,
    at_step: Callable[[int, Callable[[], object]], None],
    setting: tuple[str, ...],
) -> None:
    settings = (*GUIDED, "train.steps=20", "optim.warmup_steps=12", *setting)
    run(pairs, tmp_path / "whole", *settings)
    at_step(9, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunStopped, match="stopped at step 9 of 20; continue with --resume"):
        run(pairs, tmp_path / "cut", *settings)
    assert weights(tmp_path / "cut")["step"] == 9
    assert not RunFolder(tmp_path / "cut").finished
    at_step(9, lambda: pytest.fail("a resumed run repeats no step"))
    run(pairs, tmp_path / "cut", *settings, resume=True)
    same_run(tmp_path / "whole", tmp_path / "cut")
    seconds = [record["seconds"] for record in RunFolder(tmp_path / "cut").metrics()]
    assert seconds == sorted(seconds) and seconds[0] > 0  # of both sessions together
    assert RunFolder(tmp_path / "cut").summary()["seconds"] == seconds[-1]


def same_run(first: Path, second: Path) -> None:
    assert differences(weights(first), weights(second)) == []
    assert metrics(first) == metrics(second)
    clock = ("seconds", "images_per_second", "waiting_share", "peak_memory_bytes")
    one, other = RunFolder(first).summary(), RunFolder(second).summary()
    assert {key: one[key] for key in one if key not in clock} == {key: other[key] for key in other if key not in clock}


@pytest.mark.slow
def test_a_killed_run_resumes_to_bit_by_bit_the_same_end(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*GUIDED, "train.steps=60", "train.checkpoint_every=3")
    recipe = recipe_file(tmp_path / "killed.yaml", pairs, *settings)
    folder = tmp_path / "killed"
    process = start("train", recipe, "--out", folder)
    wait_for(lambda: lines(folder / "metrics.jsonl") >= 8, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= weights(folder)["step"] < 60
    assert not RunFolder(folder).finished
    assert call(monkeypatch, "train", recipe, "--out", folder, "--resume") == 0
    run(pairs, tmp_path / "whole", *settings)
    same_run(tmp_path / "whole", folder)


def test_auto_precision_is_settled_once_and_a_resumed_run_keeps_it(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_step: Callable[[int, Callable[[], object]], None],
) -> None:
    folder, settings = tmp_path / "run", (*GUIDED, "train.steps=4", "train.precision=auto")
    monkeypatch.setattr(runtime, "faster_precision", lambda where: "bf16")
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunStopped, match="stopped at step 2 of 4"):
        run(pairs, folder, *settings)
    assert RunFolder(folder).config()["train"]["precision"] == "bf16"
    monkeypatch.setattr(runtime, "faster_precision", lambda where: pytest.fail("measured a second time"))
    run(pairs, folder, *settings, resume=True)
    run(pairs, folder, *settings, resume=True)  # finished: there is nothing to do, and no other run is asked for
    at_step(2, lambda: None)
    run(pairs, tmp_path / "whole", *GUIDED, "train.steps=4", "train.precision=bf16")
    assert differences(weights(tmp_path / "whole"), weights(folder)) == []


def test_blocks_that_are_computed_again_change_nothing(pairs: Path, tmp_path: Path) -> None:
    for again in (False, True):
        settings = (*GUIDED, "guidance.read=both", "train.steps=4", f"train.checkpoint_blocks={again}")
        run(pairs, tmp_path / str(again), *settings)
    for part in ("model", "optimizer"):
        assert differences(*(weights(tmp_path / str(again))[part] for again in (False, True))) == []


@pytest.mark.slow
def test_a_compiled_run_is_the_run_to_rounding(pairs: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        settings = (*GUIDED, "train.steps=4", "train.log_every=1", f"train.compile={compiled}")
        run(pairs, tmp_path / str(compiled), *settings)
        losses.append([record["loss"] for record in RunFolder(tmp_path / str(compiled)).metrics()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
    # Its weights bear the same names, so either opens the other's checkpoints.
    assert weights(tmp_path / "True")["model"].keys() == weights(tmp_path / "False")["model"].keys()


@pytest.mark.slow
def test_sigterm_to_all_processes_saves_and_ends_resumably(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A scheduler signals the workers that decode as well: the step still has to come to its end.
    settings = (*GUIDED, "train.steps=300", "train.log_every=4", "data.workers=1")
    recipe = recipe_file(tmp_path / "ended.yaml", pairs, *settings)
    folder = tmp_path / "ended"
    process = start("train", recipe, "--out", folder, start_new_session=True)
    wait_for(lambda: lines(folder / "metrics.jsonl") >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    step = weights(folder)["step"]
    assert errors == f"depthjepa: stopped at step {step} of 300; continue with --resume\n"
    assert 8 <= step < 300


def test_resuming_another_configuration_is_refused_and_the_keys_are_named(
    pairs: Path, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunStopped):
        run(pairs, tmp_path / "run", "train.steps=6")
    before = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(BadInput, match=r"--resume with changed keys: optim\.lr, train\.steps;"):
        run(pairs, tmp_path / "run", "train.steps=7", "optim.lr=5e-4", resume=True)
    with pytest.raises(BadInput, match="holds a run already: continue it with --resume, or choose another --out"):
        run(pairs, tmp_path / "run", "train.steps=6")
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == before
    # Where and how it is carried out may change.
    run(
        pairs,
        tmp_path / "run",
        "train.steps=6",
        "train.threads=2",
        "data.workers=1",
        "train.timeout_minutes=3",
        resume=True,
    )
    assert weights(tmp_path / "run")["step"] == 6
    torch.set_num_threads(1)


CONSTANT = (
    "optim.start_lr=1e-3",
    "optim.lr=1e-3",
    "optim.final_lr=1e-3",
    "optim.weight_decay=0.04",
    "optim.final_weight_decay=0.04",
    "optim.momentum=0.99",
    "optim.final_momentum=0.99",
)


def test_a_lengthened_run_goes_on_and_says_how_its_rates_change(
    pairs: Path, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    said: list[str] = []
    for folder, settings in (("constant", CONSTANT), ("falling", ())):
        run(pairs, tmp_path / folder, "train.steps=4", *settings)
        with pytest.raises(BadInput, match=r"changed keys: train\.steps; .* other values; --lengthen makes it longer"):
            run(pairs, tmp_path / folder, "train.steps=8", *settings, resume=True)
        for steps in (3, 4):
            with pytest.raises(
                BadInput, match=rf"one of 4 steps, and {steps} are asked for: give more of train\.steps"
            ):
                longer(pairs, tmp_path / folder, said.append, f"train.steps={steps}", *settings)
        assert RunFolder(tmp_path / folder).finished
        at_step(6, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(RunStopped, match="stopped at step 6 of 8"):
            longer(pairs, tmp_path / folder, said.append, "train.steps=8", *settings)
        at_step(6, lambda: None)
        assert not RunFolder(tmp_path / folder).finished
        if folder == "constant":
            run(pairs, tmp_path / folder, "train.steps=8", *settings, resume=True)  # no longer longer
        else:
            longer(pairs, tmp_path / folder, said.append, "train.steps=8", *settings)  # the same command goes on
        assert RunFolder(tmp_path / folder).summary()["steps"] == 8
    # Where no rate changes it is the run that was so long from the start; else it has that one's rates from there on.
    run(pairs, tmp_path / "whole", "train.steps=8", *CONSTANT)
    for part in ("model", "optimizer"):
        assert differences(weights(tmp_path / "constant")[part], weights(tmp_path / "whole")[part]) == []
    run(pairs, tmp_path / "eight", "train.steps=8")
    rates = [[record["lr"] for record in metrics(tmp_path / name)] for name in ("falling", "eight")]
    assert rates[0][4:] == rates[1][4:] and rates[0][:4] != rates[1][:4]
    told = [
        line for line in said if line.startswith("lengthened from 4 to 8 steps: step 5 has the rates of a run of 8")
    ]
    assert len(told) == 2 and "learning rate" in told[1] and "learning rate" not in told[0]
    assert f"learning rate {rates[0][3]:.3g} to {rates[1][4]:.3g}" in told[1]


def longer(root: Path, folder: Path, say: Callable[[str], None], *settings: str) -> None:
    training.train(tiny(root, *settings), folder, resume=True, lengthen=True, say=say)


def test_a_finished_run_resumes_to_its_summary_at_once(
    pairs: Path, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    summary = run(pairs, tmp_path / "run", "train.steps=2")
    at_step(1, lambda: pytest.fail("a finished run does no step"))
    assert run(pairs, tmp_path / "run", "train.steps=2", resume=True) == summary
    with pytest.raises(BadInput, match=r"train\.steps"):
        run(pairs, tmp_path / "run", "train.steps=3", resume=True)


def test_resume_without_a_run_starts_one(pairs: Path, tmp_path: Path) -> None:
    assert run(pairs, tmp_path / "new", "train.steps=1", resume=True)["steps"] == 1


# probing on the way


def test_best_is_the_checkpoint_of_the_highest_probe_and_probing_changes_nothing(pairs: Path, tmp_path: Path) -> None:
    settings = (*GUIDED, "train.steps=9", "optim.lr=2e-3")
    run(pairs, tmp_path / "plain", *settings)
    run(pairs, tmp_path / "probed", *settings, "train.probe_every=3")
    records = metrics(tmp_path / "probed")
    probes = {record["step"]: record["probe_score"] for record in records if "probe_score" in record}
    assert list(probes) == [3, 6, 9]
    assert all(record["probe_score"] == record["probe_r2_within"] for record in records if "probe_score" in record)
    assert weights(tmp_path / "probed", "best")["step"] == max(probes, key=lambda step: probes[step])
    assert [record for record in records if "loss" in record] == metrics(tmp_path / "plain")
    model = weights(tmp_path / "plain")["model"]
    assert differences(model, weights(tmp_path / "probed")["model"]) == []


def test_a_probe_that_was_cut_off_is_made_up_where_nothing_was_logged_since_the_one_before(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.steps=6", "train.probe_every=2", "train.log_every=6")
    made: list[float] = []

    def cut_off(*_: object) -> tuple[dict[str, float], float]:
        made.append(0.1 * len(made))
        if len(made) == 2:
            signal.raise_signal(signal.SIGTERM)
        return {}, made[-1]

    monkeypatch.setattr(training, "probe_during_training", cut_off)
    with pytest.raises(RunStopped):
        run(pairs, tmp_path / "run", *settings)
    run(pairs, tmp_path / "run", *settings, resume=True)
    assert [record["step"] for record in metrics(tmp_path / "run") if "probe_score" in record] == [2, 4, 6]


def test_best_is_kept_over_a_worse_probe_and_over_a_resume(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_step: Callable[[int, Callable[[], object]], None],
) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.4])
    monkeypatch.setattr(training, "probe_during_training", lambda *_: ({}, next(scores)))
    at_step(7, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(RunStopped):
        run(pairs, tmp_path / "run", "train.steps=8", "train.probe_every=2")
    run(pairs, tmp_path / "run", "train.steps=8", "train.probe_every=2", resume=True)
    found = {record["step"]: record["probe_score"] for record in metrics(tmp_path / "run") if "probe_score" in record}
    assert found == {2: 0.1, 4: 0.5, 6: 0.3, 8: 0.4}
    assert weights(tmp_path / "run", "best")["step"] == 4


def test_probing_without_labels_or_depth_is_refused(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", 8)
    with pytest.raises(BadInput, match=r"train\.probe_every needs labels or depth"):
        run(flat, tmp_path / "run", "train.steps=4", "train.probe_every=2")


# what stops a run


def test_a_teacher_that_is_not_finite_stops_before_the_weights_are_touched(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_step: Callable[[int, Callable[[], object]], None],
) -> None:
    settings = (*GUIDED, "train.steps=6", "train.checkpoint_every=1")
    at_step(3, lambda: monkeypatch.setattr(DepthTeacher, "batch_latents", spoilt(DepthTeacher.batch_latents)))
    recipe = recipe_file(tmp_path / "spoilt.yaml", pairs, *settings)
    assert call(monkeypatch, "train", recipe, "--out", tmp_path / "spoilt") == 1
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("depthjepa: step 3: loss is nan, loss_depth is nan, grad_norm is nan; gradient of ")
    assert " others; images train/rgb/" in message
    assert "loss_jepa" not in message
    saved = weights(tmp_path / "spoilt")
    assert saved["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    load_encoder(tmp_path / "spoilt")


def spoilt(latents: Callable[[DepthTeacher, Batch, tuple[int, int]], Latents]) -> Callable[..., Latents]:
    def with_one_nan(teacher: DepthTeacher, batch: Batch, cells: tuple[int, int]) -> Latents:
        found = latents(teacher, batch, cells)
        values = found.values.masked_fill(found.valid, math.nan)
        return Latents(values, found.valid)

    return with_one_nan


def test_a_learning_rate_far_too_high_stops_and_names_the_term(pairs: Path, tmp_path: Path) -> None:
    settings = ("optim.lr=1e30", "optim.start_lr=1e30", "train.steps=8", "train.checkpoint_every=1")
    with pytest.raises(RunStopped, match=r"step \d: loss is (nan|inf), loss_jepa is (nan|inf).*Lower optim\.lr"):
        run(pairs, tmp_path / "run", *settings)
    saved = weights(tmp_path / "run")
    assert saved["step"] >= 1
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond so many bytes, as on a full disk; -1: as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size < 0 else size, hard))

    yield set_limit
    set_limit(-1)


@pytest.mark.parametrize(("size", "file"), [(100_000, "last.pt"), (600, "metrics.jsonl")])
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before_it_whole(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_step: Callable[[int, Callable[[], object]], None],
    limit: Callable[[int], None],
    size: int,
    file: str,
) -> None:
    settings = (*GUIDED, "train.steps=6", "train.checkpoint_every=2")
    recipe, folder = recipe_file(tmp_path / "full.yaml", pairs, *settings), tmp_path / "full"
    at_step(3, lambda: limit(size))
    status = call(monkeypatch, "train", recipe, "--out", folder)
    limit(-1)
    assert status == 1
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("depthjepa: the disk is full: ")
    assert file in message
    assert weights(folder)["step"] == 2
    assert not list(folder.rglob("*.partial"))
    at_step(3, lambda: None)
    assert call(monkeypatch, "train", recipe, "--out", folder, "--resume") == 0
    run(pairs, tmp_path / "whole", *settings)
    same_run(tmp_path / "whole", folder)


def test_a_few_unreadable_images_are_named_in_the_summary(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", 120)
    (flat / "0007.png").write_bytes(b"torn")
    summary = run(flat, tmp_path / "run", "train.epochs=1")
    assert summary["steps"] == 15
    assert summary["skipped_images"] == 1
    [name] = summary["skipped_names"]
    assert str(flat / "0007.png") in name


def test_many_unreadable_images_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = write_flat(tmp_path / "flat", 120)
    for number in (7, 50):
        (flat / f"{number:04}.png").write_bytes(b"torn")
    recipe = recipe_file(tmp_path / "torn.yaml", flat, "train.epochs=2")
    assert call(monkeypatch, "train", recipe, "--out", tmp_path / "run") == 2
    [message] = capsys.readouterr().err.splitlines()
    assert "2 of 120 images cannot be read, more than 1 %" in message
    assert "0007.png" in message and "0050.png" in message
    assert message.endswith("(there is no checkpoint yet)")


def test_fewer_images_than_a_batch_wrap_round_with_a_note(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "few" / f"{number}.png", picture(number))
    said: list[str] = []
    training.train(tiny(tmp_path / "few", "train.steps=2"), tmp_path / "run", say=said.append)
    assert any("3 images are fewer than a batch of 8" in text for text in said)
    assert said[0].endswith("train 3 images, val 3 (the same ones: nothing is held out)")
    assert said[1].startswith("estimate: 2 steps of 8 images")
