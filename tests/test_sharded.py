"""Networks whose parameters are shared out learn what whole ones do, and their checkpoints know no number of processes.

Tests of several processes are slow: each of them takes seconds to begin.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from depthjepa import runtime
from depthjepa.checkpoints import checkpoint, parts
from depthjepa.checkpoints.parts import joined, split
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.checkpoints.saving import Saving
from depthjepa.data.loading import open_source
from depthjepa.distributed import Ranks
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import REST, RunFolder, parts_at
from depthjepa.method import build_method
from depthjepa.run.memory import memory_need
from tiny_images import write_flat, write_pairs
from tiny_runs import GUIDED, Call, differences, lines, metrics, recipe_file, run, start_several, tiny, wait_for

SHARDED = "train.parallel=sharded"
CPU = torch.device("cpu")


def content(folder: Path, step: int = 3) -> dict[str, Any]:
    """What a run of a network with one layer more than a trained one keeps; the moments of one weight are missing."""
    torch.manual_seed(step)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(list(network.named_parameters()))
    network[0](torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return checkpoint.content(
        step=step,
        epoch=0.5,
        config=tiny(folder),
        classes=("a", "b"),
        model=network.state_dict(),
        optimizer=optimizer.state_dict(),
        whitening=None,
        floor=0.25,
        skipped=("broken.jpg",),
    )


def written(folder: Path, step: int = 3, name: str = "last") -> tuple[Path, dict[str, Any]]:
    """A checkpoint in parts, written by one process, and what it was made of."""
    held = content(folder, step)
    with Saving(RunFolder(folder), Ranks(), 1.0, in_parts=True) as saving:
        saving.save(name, step, held)
        saving.settle()
    return parts_at(folder, name, step), held


# the files


def test_parts_hold_what_one_file_does(tmp_path: Path) -> None:
    held = content(tmp_path)
    assert differences(joined(*split(held)), held) == []
    path, held = written(tmp_path)
    assert path == tmp_path / "checkpoints" / "last-00000003" == RunFolder(tmp_path).checkpoint()
    assert differences(parts.read(path, moments=True), held) == []
    one = tmp_path / "one.pt"
    checkpoint.save(one, held)
    for place in (path, tmp_path):
        loaded, expected = load_checkpoint(place, moments=True), load_checkpoint(one)
        assert differences(loaded.model, expected.model) == differences(loaded.optimizer, expected.optimizer) == []
        assert load_checkpoint(place).optimizer["state"] == {}  # they take memory that who measures has no use for
        assert (loaded.step, loaded.floor, loaded.classes, loaded.skipped) == (3, 0.25, ("a", "b"), ("broken.jpg",))
    assert load_checkpoint(path).path == load_checkpoint(path / REST).path == path
    shares = load_file(next(path.glob("*.safetensors")))  # anybody's tool reads them
    assert torch.equal(shares["model.1.weight"], held["model"]["1.weight"])


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    held = content(tmp_path)
    before = held["model"]["0.weight"].clone()
    with Saving(RunFolder(tmp_path), Ranks(), 1.0, in_parts=True) as saving:
        saving.save("last", 3, held)
        held["model"]["0.weight"].zero_()  # as training does, which does not wait
        saving.settle()
    assert torch.equal(load_checkpoint(tmp_path).model["0.weight"], before)


def test_a_new_checkpoint_takes_the_place_of_the_one_before_it_whatever_its_form(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def names() -> list[str]:
        return sorted(each.name for each in folder.iterdir())

    written(tmp_path, 3)
    written(tmp_path, 3, "best")
    written(tmp_path, 7)
    assert names() == ["best-00000003", "last-00000007"]
    with Saving(RunFolder(tmp_path), Ranks(), 1.0, in_parts=False) as saving:
        saving.save("last", 9, content(tmp_path, 9))
    assert names() == ["best-00000003", "last.pt"] and load_checkpoint(tmp_path).step == 9
    written(tmp_path, 100_000_000)
    assert names() == ["best-00000003", "last-100000000"] and load_checkpoint(tmp_path).step == 100_000_000


def test_what_a_kill_has_left_counts_for_nothing_and_is_removed(tmp_path: Path) -> None:
    whole, _ = written(tmp_path, 3)
    torn, _ = written(tmp_path / "other", 5)
    (torn / REST).unlink()
    torn = Path(shutil.move(torn, tmp_path / "checkpoints"))
    assert RunFolder(tmp_path).checkpoint() == whole and load_checkpoint(tmp_path).step == 3
    with pytest.raises(BadInput, match=r"last-00000005 is what a kill has left of a ch.*: give the run folder"):
        load_checkpoint(torn)
    with Saving(RunFolder(tmp_path), Ranks(), 1.0, in_parts=True):
        assert not torn.exists() and whole.exists()
    # A kill may come between a new checkpoint and the end of the one before it: the newer one counts.
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", content(tmp_path, 4))
    os.utime(whole / REST, (1, 1))
    assert load_checkpoint(tmp_path).step == 4
    os.utime(tmp_path / "checkpoints" / "last.pt", (0, 0))
    assert load_checkpoint(tmp_path).step == 3


@pytest.mark.parametrize("damage", ["no shares", "half a share", "half the rest", "another rest"])
def test_damaged_parts_are_refused(tmp_path: Path, damage: str) -> None:
    path, _ = written(tmp_path)
    [share] = path.glob("*.safetensors")
    if damage == "no shares":
        share.unlink()
    elif damage == "another rest":  # of a larger network
        rest = torch.load(path / REST)
        torch.save(rest | {"shapes": rest["shapes"] | {"model.0.weight": [8, 3]}}, path / REST)
    else:
        torn = share if damage == "half a share" else path / REST
        torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    said = "is truncated" if damage == "half the rest" else "is no whole checkpoint: .*copy it again"
    with pytest.raises(BadInput, match=rf"{path}.* {said}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_stops_the_run_at_its_next_checkpoint_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, held = written(tmp_path)

    def refused(_: int) -> None:
        raise OSError(number, "planted")

    with Saving(RunFolder(tmp_path), Ranks(), 1.0, in_parts=True) as saving, monkeypatch.context() as full:
        full.setattr(os, "fsync", refused)
        saving.save("last", 4, content(tmp_path, 4))
        with pytest.raises(RunStopped if number == errno.ENOSPC else OSError, match=r"the disk is full|planted"):
            saving.save("last", 5, content(tmp_path, 5))
    assert RunFolder(tmp_path).checkpoint() == path
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # what does not count takes no room
    assert differences(parts.read(path, moments=True), held) == []


def test_a_reader_takes_the_next_checkpoint_where_training_has_removed_the_one_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 3)
    honest = parts.read_torch

    def slow(path: Path) -> Any:
        rest = honest(path)
        if "00000003" in str(path):
            written(tmp_path, 4)  # meanwhile
        return rest

    monkeypatch.setattr(parts, "read_torch", slow)
    assert load_checkpoint(tmp_path).step == 4


def test_processes_that_do_not_share_a_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LATE", 0)
    path, held = written(tmp_path)
    _, rest = split(held)
    with pytest.raises(BadInput, match=r"model.1.weight is not all there .* on a disk that all of them see"):
        parts.wait_until_whole(path, rest["shapes"] | {"model.1.weight": [4, 4]})


def test_convert_makes_one_file_of_parts(tmp_path: Path, call: Call) -> None:
    pairs = write_pairs(tmp_path / "pairs", 8, 2)
    run(pairs, tmp_path / "run", *GUIDED, "train.steps=2", "evaluation.pictures=1")
    whole = load_checkpoint(tmp_path / "run")
    one = torch.load(tmp_path / "run" / "checkpoints" / "last.pt")
    last = parts_at(tmp_path / "run", "last", 2)
    parts.write(last, *split(one), Ranks(), None)
    parts.remove_others(last)
    status, said, _ = call("convert", tmp_path / "run", tmp_path / "one.pt", "--to", "checkpoint")
    assert status == 0 and "a checkpoint in one file, of step 2" in said
    found = load_checkpoint(tmp_path / "one.pt")
    assert differences(found.model, whole.model) == differences(found.optimizer, whole.optimizer) == []
    assert found.optimizer["state"]
    assert call("probe", tmp_path / "run", "depth", "--data", pairs)[0] == 0
    assert run(pairs, tmp_path / "run", *GUIDED, "train.steps=2", "evaluation.pictures=1", resume=True)["finished"]


def test_a_share_of_the_weights_takes_a_share_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flat(tmp_path / "flat", 5)
    # What this process holds changes between two looks by what other tests left behind, more than is to be seen here.
    monkeypatch.setattr(runtime, "held_bytes", lambda _: 10**9)

    def fixed(*settings: str) -> int:
        config = tiny(tmp_path / "flat", "model.width=256", "model.depth=8", *settings)
        method = build_method(config, None, classes=0)
        source = open_source(config.data, "train")
        return memory_need(config, method, None, source, Ranks(0, 8, 0, 8), CPU).fixed

    large = build_method(tiny(tmp_path / "flat", "model.width=256", "model.depth=8"), None, classes=0)
    weights = sum(parameter.nbytes for parameter in large.parameters())
    saved = fixed() - fixed(SHARDED)
    # Seven eighths of both encoders and of the moments, and the copy in which whole gradients are exchanged.
    assert saved > 2 * weights


# several processes


EVERYTHING = ("guidance.kind=feature", "guidance.weight=0.5", "guidance.read=both", "optim.clip=1.0",
              "optim.layer_decay=0.9", "loss.variance=0.05", "loss.covariance=0.003", "loss.gaussian=0.01",
              "loss.visible=0.5", "loss.visible_from=0", "loss.pixel=0.25", "loss.target_layers=[0.5,1]")  # fmt: skip
RUNS = {
    "plain": ("guidance.kind=none", "train.probe_every=10"),
    "everything": (*EVERYTHING, "train.probe_every=10"),
    "checkpointed": (*GUIDED, "train.checkpoint_blocks=true", "train.accumulate=2"),
    "thawed": (*GUIDED, "init.frozen_steps=7", "init.thaw_steps=5"),
    "pixel": ("guidance.kind=pixel", "guidance.head=cnn"),
    "supervised": ("train.objective=supervised",),
}


# Where a gradient is hardly more than rounding, AdamW makes a step of the rate's size of it: of one weight of the pixel
# head 1.1e-5 on four whole processes, when its moments were 1e-6 apart and all losses 2e-7.
WEIGHTS = {"pixel": 3e-5}


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and errors of all processes."""
    try:
        said = [process.communicate(timeout=180)[1] for process in processes]
        return [(process.returncode, errors) for process, errors in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def wait_for_lines(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return when a run has logged so many steps, those before it was resumed among them."""
    wait_for(lambda: lines(out / "metrics.jsonl") >= count, process)


def farthest(first: Path, second: Path) -> tuple[float, float]:
    """The largest differences of two runs: of any logged figure, relative, or moment; and of any weight."""
    one, other = metrics(first), metrics(second)
    assert [list(record) for record in one] == [list(record) for record in other]
    apart = [
        abs(left[key] - right[key]) / max(1.0, abs(left[key]))
        for left, right in zip(one, other, strict=True)
        for key in left
    ]
    here, there = (load_checkpoint(run, moments=True) for run in (first, second))
    assert here.step == there.step and here.model.keys() == there.model.keys()
    moments = [dict(split({"model": {}, "optimizer": each.optimizer})[0]) for each in (here, there)]
    assert moments[0].keys() == moments[1].keys()
    apart += [float((moments[0][key] - moments[1][key]).abs().max()) for key in moments[0]]
    return max(apart), max(float((here.model[name] - there.model[name]).abs().max()) for name in here.model)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", RUNS)
def test_twenty_steps_are_those_of_one_process(kind: str, world: int, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 24, 7)
    settings = (*RUNS[kind], "train.steps=20", "train.checkpoint_every=6", "evaluation.pictures=2")
    recipe = recipe_file(tmp_path / "run.yaml", pairs, *settings)
    run(pairs, tmp_path / "one", *settings)
    # A fused kernel of AdamW adds in another order where a share begins elsewhere: one part in 10⁷.
    for name in ("ddp", "sharded"):
        told = ended(start_several(world, "train", recipe, "--out", tmp_path / name, f"train.parallel={name}"))
        assert [status for status, _ in told] == [0] * world, told
        figures, weights = farthest(tmp_path / "one", tmp_path / name)
        assert figures < 1e-5 and weights < WEIGHTS.get(kind, 1e-5)
    names = sorted(file.name for file in (tmp_path / "sharded" / "figures").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "one" / "figures").iterdir())


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes_whole_or_sharded(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 24, 7)
    settings = (*EVERYTHING, "train.steps=70", "train.checkpoint_every=1000", "evaluation.pictures=2")
    recipe = recipe_file(tmp_path / "run.yaml", pairs, *settings)
    run(pairs, tmp_path / "one", *settings)
    out, reached = tmp_path / "several", 0
    for world, parallel in ((2, "sharded"), (4, "sharded"), (1, "sharded"), (4, "sharded"), (2, "ddp"), (2, "sharded")):
        again = ["--resume"] if reached else []
        processes = start_several(world, "train", recipe, "--out", out, f"train.parallel={parallel}", *again)
        wait_for_lines(out, reached + 4, processes[0])
        processes[0].send_signal(signal.SIGTERM)  # one of them is enough
        told = ended(processes)
        saved = load_checkpoint(out)
        assert all(status == 1 and f"stopped at step {saved.step} of 70" in errors for status, errors in told), told
        assert saved.step > reached and saved.path.is_dir() == (parallel == "sharded" and world > 1)
        reached = saved.step
    assert ended(start_several(1, "train", recipe, "--out", out, "--resume"))[0][0] == 0
    assert max(farthest(tmp_path / "one", out)) < 1e-5


@pytest.mark.slow
def test_the_end_of_one_process_ends_the_others_with_a_message(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 24, 7)
    settings = (*GUIDED, SHARDED, "train.steps=60", "train.checkpoint_every=2", "train.timeout_minutes=0.2")
    recipe = recipe_file(tmp_path / "run.yaml", pairs, *settings)
    for out in ("whole", "killed"):
        processes = start_several(4, "train", recipe, "--out", tmp_path / out)
        if out == "killed":
            wait_for_lines(tmp_path / out, 10, processes[0])
            processes[2].kill()
            begun = time.monotonic()
        told = ended(processes)
        assert [status for status, _ in told] == ([0] * 4 if out == "whole" else [1, 1, -signal.SIGKILL, 1]), told
    assert time.monotonic() - begun < 60
    for number in (0, 1, 3):
        assert f"depthjepa: process {number} of 4 has lost another one" in told[number][1], told
    assert all(
        not status for status, _ in ended(start_several(4, "train", recipe, "--out", tmp_path / "killed", "--resume"))
    )
    assert same_bits(tmp_path / "whole", tmp_path / "killed")


def same_bits(first: Path, second: Path) -> bool:
    one, other = (load_checkpoint(run, moments=True) for run in (first, second))
    alike = [[each.step, each.model, each.optimizer] for each in (one, other)]
    best = [RunFolder(run).checkpoint("best") for run in (first, second)]
    if any(best):
        assert best[0] is not None and best[1] is not None and best[0].name == best[1].name
        alike = [[*each, load_checkpoint(path).model] for each, path in zip(alike, best, strict=True)]
    return metrics(first) == metrics(second) and not differences(*alike)


def newest(run: Path) -> tuple[Path, int] | None:
    """The newest checkpoint of a run, and when it was written."""
    path = RunFolder(run).checkpoint()
    try:
        return None if path is None else (path, path.stat().st_mtime_ns)
    except FileNotFoundError:  # it has just been removed
        return None


def wait_for_another(run: Path, before: tuple[Path, int] | None, process: subprocess.Popen[str]) -> None:
    """Return when a run has another checkpoint than `before`: it has gone on."""
    wait_for(lambda: newest(run) not in (before, None), process)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills_one_after_the_other_leave_no_trace(world: int, tmp_path: Path) -> None:
    """At random moments, also while a checkpoint is written: there is one after every second step."""
    pairs = write_pairs(tmp_path / "pairs", 24, 7)
    often = ("train.checkpoint_every=2", "train.probe_every=20", "train.timeout_minutes=0.2")
    settings = (*GUIDED, SHARDED, "train.steps=600", *often)
    recipe = recipe_file(tmp_path / "run.yaml", pairs, *settings)
    assert all(not status for status, _ in ended(start_several(world, "train", recipe, "--out", tmp_path / "whole")))
    generator, out, steps = np.random.default_rng(world), tmp_path / "killed", []
    for _ in range(20):
        again, before = ["--resume"] if RunFolder(out).started else [], newest(out)
        processes = start_several(world, "train", recipe, "--out", out, *again)
        wait_for_another(out, before, processes[0])
        time.sleep(float(generator.uniform(0, 0.15)))
        processes[int(generator.integers(world))].send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        for process in processes:
            if process.poll() is None and generator.random() < 0.5:
                process.kill()
        ended(processes)
        steps.append(load_checkpoint(out).step if RunFolder(out).checkpoint() else 0)
    print(f"{world} processes, killed after steps {steps}")
    assert steps == sorted(steps) and steps[0] < steps[-1] < 600
    assert all(not status for status, _ in ended(start_several(world, "train", recipe, "--out", out, "--resume")))
    assert same_bits(tmp_path / "whole", out)
