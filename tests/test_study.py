"""A study's runs are the runs that `train` and `probe` give, whatever stops or fails; its table is their arithmetic."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

import depthjepa
from depthjepa import cli, cost, runtime
from depthjepa.backbones.opening import load_encoder
from depthjepa.commands.teach import teach
from depthjepa.config.reading import build_config, load_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.evaluation import probes
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import RunFolder, plain, write_whole
from depthjepa.report.page import write_report
from depthjepa.study.claims import Comparison, claims_of, differences_by_image, lines
from depthjepa.study.plan import Study, load_study, resolve, study_names
from depthjepa.study.processes import measure_seconds, spawn
from depthjepa.study.results import (
    Finished,
    baseline_rows,
    keep_results,
    markdown,
    read_finished,
    spread,
    write_tables,
)
from depthjepa.study.running import run_study
from depthjepa.training import train
from tiny_images import millimetres, picture, save, write_classes, write_flat, write_labelled, write_pairs
from tiny_onnx import write_onnx
from tiny_runs import GUIDED, SETTINGS, Ended, inside, metrics, start, weights

FAILING = ("optim.lr=1e30", "optim.start_lr=1e30")
STEPS = 60
GUESSES = ["mean map", "scene map", "raw patches", "random encoder"]  # rows that no arm trained


@pytest.fixture(scope="module", autouse=True)
def quick_estimate() -> Iterator[None]:
    """The runs in this process are not told how long they take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def twins(root: Path, **changes: Any) -> Study:
    """Two arms, two seeds."""
    base = root.parent / f"{root.name}.yaml"
    base.write_text("{}")
    content: dict[str, Any] = {
        "base": str(base),
        "arms": {"guided": GUIDED, "unguided": ()},
        "seeds": (0, 1),
        "name": "twins",
        "settings": (f"data.root={root}", *SETTINGS, f"train.steps={STEPS}"),
        "probes": ("depth", "diagnose"),
        "claims": (Comparison("depth.r2_within", "guided", ("unguided",), 0.02),),
    }
    return Study(**content | changes)


def study_file(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


# a study that is cut off in its second run and goes on


@dataclass
class Done:
    """A study that is finished."""

    folder: Path
    content: dict[str, Any]


@pytest.fixture(scope="module")
def done(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All in this process: another one for each run takes longer than the runs."""
    folder = tmp_path_factory.mktemp("done") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthjepa.study.processes.spawn", inside)
        return Done(folder, run_study(twins(pairs), folder, say=lambda _: None))


@dataclass
class Cut:
    folder: Path
    after: list[Path]  # what was finished when it stopped
    step: int  # where the cut run stood
    finished_at: float  # when the first run wrote its summary
    said: list[str]


@pytest.fixture(scope="module")
def cut(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    folder = tmp_path_factory.mktemp("cut") / "study"
    second = folder / "unguided" / "seed-0"

    def interrupt() -> None:
        with contextlib.suppress(AssertionError):  # said by the run that was not cut
            wait_for(lambda: len(RunFolder(second).metrics()) >= 3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(RunStopped, match="stopped with 1 of 4 runs finished; continue with --resume"):
        run_study(twins(pairs), folder, say=lambda _: None)
    thread.join()
    after = [each for each in sorted(folder.glob("*/seed-*")) if RunFolder(each).finished]
    step = weights(second)["step"]
    finished_at = (folder / "guided" / "seed-0" / "summary.json").stat().st_mtime
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthjepa.study.processes.spawn", inside)
        run_study(twins(pairs), folder, resume=True, say=said.append)
    return Cut(folder, after, step, finished_at, said)


@pytest.mark.slow
def test_an_interruption_saves_the_running_one_and_resume_does_only_what_is_missing(
    cut: Cut, pairs: Path, tmp_path: Path
) -> None:
    settings = [f"data.root={pairs}", *SETTINGS, f"train.steps={STEPS}"]
    train(build_config({"name": "unguided", "seed": 0}, settings), tmp_path / "alone", say=lambda _: None)
    assert metrics(cut.folder / "unguided" / "seed-0") == metrics(tmp_path / "alone")
    first = cut.folder / "guided" / "seed-0"
    assert cut.after == [first]
    assert 3 <= cut.step < STEPS
    assert first.joinpath("summary.json").stat().st_mtime == cut.finished_at
    assert f"resumed at step {cut.step} of {STEPS}" in (cut.folder / "unguided" / "seed-0.log").read_text()
    starts = [line for line in cut.said if " starts " in line]
    assert starts == [
        "unguided, seed 0 starts (run 2 of 4)",
        "guided, seed 1 starts (run 3 of 4)",
        "unguided, seed 1 starts (run 4 of 4)",
    ]
    assert cut.said[0] == "1 of 4 runs were finished before"
    assert [line.rpartition(" ")[0].rpartition("(")[2] for line in cut.said if " finished after " in line] == [
        "2 of",
        "3 of",
        "4 of",
    ]


def test_each_run_is_the_run_that_train_and_probe_give(done: Done, pairs: Path, tmp_path: Path) -> None:
    settings = [f"data.root={pairs}", *SETTINGS, f"train.steps={STEPS}"]
    config = build_config({"name": "unguided", "seed": 0}, settings)
    train(config, tmp_path / "alone", say=lambda _: None)
    place = done.folder / "unguided" / "seed-0"
    assert metrics(place) == metrics(tmp_path / "alone")
    encoder = load_encoder(tmp_path / "alone")
    expected = probes.probe("depth", config, encoder, torch.device("cpu"))
    [found] = [entry for entry in done.content["runs"] if (entry["arm"], entry["seed"]) == ("unguided", 0)]
    assert found["figures"]["depth.r2_within"] == pytest.approx(expected.value("unguided", "r2_within"), abs=1e-6)
    random = found["baselines"]["random encoder"]["depth.r2_within"]
    assert random == pytest.approx(expected.value("random encoder", "r2_within"), abs=1e-6)
    assert found["figures"]["depth.r2_within"] != random
    assert found["steps"] == STEPS
    assert RunFolder(place).config()["train"]["threads"] == 1


def test_the_table_is_the_mean_and_deviation_of_the_runs(done: Done) -> None:
    assert json.loads((done.folder / "study.json").read_text()) == done.content
    assert [(entry["arm"], entry["seed"]) for entry in done.content["runs"]] == [
        ("guided", 0), ("unguided", 0), ("guided", 1), ("unguided", 1),
    ]  # fmt: skip
    for arm in ("guided", "unguided"):
        tables = [RunFolder(done.folder / arm / f"seed-{seed}").probe("depth") for seed in (0, 1)]
        for key in ("r2_within", "absrel", "rmse"):
            values = np.array([row[key] for table in tables for row in table["rows"] if row["name"] == arm])
            found = done.content["means"][arm]["figures"][f"depth.{key}"]
            assert found["mean"] == pytest.approx(values.mean())
            assert found["deviation"] == pytest.approx(values.std(ddof=1))
            assert found["n"] == 2
    rows = {row["name"]: row for row in done.content["baselines"]}
    assert list(rows) == GUESSES
    assert not rows["scene map"]["figures"]  # these pairs are of no known scene
    # Twins start alike: two random encoders, not four.
    random = rows["random encoder"]["figures"]["depth.r2_within"]
    table = [RunFolder(done.folder / "guided" / f"seed-{seed}").probe("depth") for seed in (0, 1)]
    values = np.array([row["r2_within"] for each in table for row in each["rows"] if row["name"] == "random encoder"])
    assert (random["n"], random["mean"]) == (2, pytest.approx(values.mean()))
    assert random["deviation"] == pytest.approx(values.std(ddof=1))


def test_the_page_has_a_row_for_each_arm_and_a_column_for_each_measure(done: Done) -> None:
    text = (done.folder / "study.md").read_text()
    assert text == markdown(done.content)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == [
        "",
        "---",
        *GUESSES,
        "guided",
        "unguided",
    ]
    assert len({len(row) for row in cells}) == 1
    assert cells[0][:4] == ["", "runs", "steps", "images/s"]
    assert "depth: R² within images ↑" in cells[0]
    assert "depth: RMSE [m] ↓" in cells[0]
    mean = done.content["means"]["guided"]["figures"]["depth.absrel"]
    assert cells[2 + len(GUESSES)][cells[0].index("depth: AbsRel ↓")] == f"{mean['mean']:.3f} ± {mean['deviation']:.3f}"
    assert "over 2 seeds (0, 1)" in text
    assert "4 of 4 runs finished" in text


def test_a_finished_study_resumes_to_the_same_files_without_a_process(
    done: Done, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("depthjepa.study.processes.spawn", lambda *_: pytest.fail("a finished study starts nothing"))
    before = {file: file.read_bytes() for file in done.folder.iterdir() if file.is_file()}
    assert run_study(twins(pairs), done.folder, resume=True, keep=tmp_path / "kept", say=lambda _: None) == done.content
    assert {file: file.read_bytes() for file in before} == before
    kept = {file.relative_to(tmp_path / "kept").as_posix() for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    assert kept == {"study.json", "study.md", "config.yaml"}
    with pytest.raises(BadInput, match="does not hold study others: choose another --keep"):
        run_study(twins(pairs, name="others"), tmp_path / "others", keep=tmp_path / "kept")
    assert not (tmp_path / "others").exists()


def test_another_study_in_the_folder_is_refused_and_what_differs_is_named(done: Done, pairs: Path) -> None:
    with pytest.raises(BadInput, match="is there already: go on with --resume, or choose another --out"):
        run_study(twins(pairs), done.folder)
    arms = {"guided": (*GUIDED, "optim.lr=0.1"), "more": ()}
    changed = twins(pairs, seeds=(0, 2), arms=arms, side_by_side=2, claims=())
    with pytest.raises(BadInput) as fault:
        run_study(changed, done.folder, resume=True)
    assert "changed study: seeds, arms.unguided, arms.more, arms.guided.optim.lr;" in str(fault.value)
    with pytest.raises(BadInput, match="holds no study to go on with"):
        run_study(twins(pairs), done.folder / "guided", resume=True)


def test_what_is_kept_has_every_figure_of_every_run_the_table_and_the_configuration(
    done: Done, pairs: Path, tmp_path: Path
) -> None:
    keep_results(plain(asdict(twins(pairs))), done.folder, tmp_path)
    kept = json.loads((tmp_path / "study.json").read_text())
    assert (tmp_path / "study.md").read_text() == markdown(done.content)
    assert [(run["arm"], run["seed"]) for run in kept["runs"]] == [
        (run["arm"], run["seed"]) for run in done.content["runs"]
    ]
    shown = {column["key"] for column in done.content["columns"]}
    for run, full in zip(kept["runs"], done.content["runs"], strict=True):
        expected = {key: value for key, value in full["figures"].items() if key in shown or key.startswith("loss")}
        assert run["figures"] == pytest.approx(expected, rel=1e-4)
        summary = RunFolder(done.folder / run["arm"] / f"seed-{run['seed']}").summary()
        assert ("depth_floor" in run) == (run["arm"] == "guided")
        assert run.get("depth_floor", 0) == pytest.approx(summary.get("depth_floor") or 0, rel=1e-4)
    # The random encoder of a seed is that of both arms: it stands at the first of them.
    assert [set(run["baselines"]) for run in kept["runs"]] == 2 * [set(GUESSES), set()]
    for arm in ("guided", "unguided"):
        values = [run["figures"]["depth.r2_within"] for run in kept["runs"] if run["arm"] == arm]
        assert kept["means"][arm]["figures"]["depth.r2_within"]["mean"] == pytest.approx(np.mean(values), abs=1e-5)
    assert kept["sentences"] == done.content["sentences"]
    table = RunFolder(done.folder / "guided" / "seed-0").probe("depth")
    assert kept["protocols"]["depth"] == [f"{table['data']}: {table['protocol']}"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["guidance"]["kind"] == "feature"
    write_report([tmp_path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Study twins" in page and "R² within images" in page and "data:image/png" in page


def test_of_a_large_study_the_columns_that_matter_are_kept(
    done: Done, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthjepa.study.results.CONFIG_BYTES", 10**6)  # nothing else fits beside so large a one
    keep_results(plain(asdict(twins(pairs))), done.folder, tmp_path)
    kept = json.loads((tmp_path / "study.json").read_text())
    keys = [column["key"] for column in kept["columns"]]
    assert keys[:3] == [column["key"] for column in done.content["columns"]][:3] and "depth.r2_within" in keys
    assert len(keys) < len(done.content["columns"])
    for run, full in zip(kept["runs"], done.content["runs"], strict=True):
        assert {key for key in run["figures"] if not key.startswith("loss")} == set(keys)
        assert all(run["figures"][key] == pytest.approx(full["figures"][key], rel=1e-4) for key in keys)
    assert kept["sentences"] == done.content["sentences"]
    assert (tmp_path / "study.md").read_text() == markdown(done.content)  # has all
    write_report([tmp_path], tmp_path / "page.html")
    assert "R² within images" in (tmp_path / "page.html").read_text()


def test_of_a_large_study_as_many_columns_are_kept_as_fit(
    done: Done, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(room: int) -> list[str]:
        monkeypatch.setattr("depthjepa.study.results.CONFIG_BYTES", 100_000 - room)
        keep_results(plain(asdict(twins(pairs))), done.folder, tmp_path)
        return [column["key"] for column in json.loads((tmp_path / "study.json").read_text())["columns"]]

    whole = kept(90_000)
    full = sum((tmp_path / name).stat().st_size for name in ("study.json", "study.md"))
    nearly, least = kept(full - 1), kept(0)
    assert sum((tmp_path / name).stat().st_size for name in ("study.json", "study.md")) < full
    assert len(least) < len(nearly) < len(whole) and set(least) < set(nearly) < set(whole)


def test_too_much_to_keep_of_a_study_is_refused(
    done: Done, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthjepa.study.results.KEPT_BYTES", 1000)
    with pytest.raises(BadInput, match=r"study twins: \d+ bytes to keep, more than 1000"):
        keep_results(plain(asdict(twins(pairs))), done.folder, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_ctrl_c_and_a_killed_study_leave_a_run_that_has_saved(pairs: Path, tmp_path: Path, killed: bool) -> None:
    content = {
        "base": str(tmp_path / "base.yaml"),
        "settings": [f"data.root={pairs}", *SETTINGS, "train.steps=5000"],
        "arms": {"only": None},
        "seeds": [3],
    }
    (tmp_path / "base.yaml").write_text("{}")
    file, place = study_file(tmp_path / "one.yaml", content), tmp_path / "out" / "only" / "seed-3"
    process = start("study", file, "--out", tmp_path / "out", start_new_session=True)
    wait_for(lambda: len(RunFolder(place).metrics()) >= 5)
    if killed:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    _, errors = process.communicate(timeout=60)
    wait_for((place / "checkpoints" / "last.pt").exists)
    assert 5 <= weights(place)["step"] < 5000
    wait_for(lambda: f"stopped at step {weights(place)['step']} of" in (place.parent / "seed-3.log").read_text())
    if not killed:
        assert process.returncode == 1
        assert errors == "depthjepa: stopped with 0 of 1 runs finished; continue with --resume\n"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.01)


# runs that fail


@pytest.mark.slow
def test_a_failing_arm_is_reported_and_the_others_finish(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "base": "base.yaml",
        "settings": [f"data.root={pairs}", *SETTINGS, "train.steps=4"],
        "arms": {"broken": list(FAILING), "sound": None},
        "seeds": 1,
        "side_by_side": 2,
        "probes": ["diagnose"],
    }
    (tmp_path / "base.yaml").write_text("{}")
    file = study_file(tmp_path / "half.yaml", content)
    monkeypatch.setattr(
        "depthjepa.study.processes.spawn", lambda *run: (spawn if "broken" in run[1].parts else inside)(*run)
    )
    monkeypatch.setattr(sys, "argv", ["depthjepa", "study", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [entry["arm"] for entry in found["runs"]] == ["sound"]
    [failed] = found["failed"]
    assert (failed["arm"], failed["seed"]) == ("broken", 0)
    assert failed["reason"].startswith("step ") and "Lower optim.lr" in failed["reason"]
    said = capsys.readouterr()
    assert said.err == "depthjepa: 1 of 2 runs failed\n"
    assert said.out.endswith((tmp_path / "out" / "study.md").read_text())
    assert f"- broken, seed 0 failed: {failed['reason']}" in said.out
    assert "1 of 2 runs finished" in said.out


# equal time


def test_with_minutes_each_arm_gets_the_steps_of_its_time_once(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[tuple[str, int], Any] = {}
    monkeypatch.setattr("depthjepa.study.processes.spawn", lambda content, *_: steps.update(keyed(content)) or Ended())
    asked = twins(pairs, minutes=0.5, settings=(f"data.root={pairs}", *SETTINGS), side_by_side=3)
    seconds = {"guided": [0.4, 0.7], "unguided": [0.3, 0.25]}  # the second time the machine is busier, or less so
    seen = []

    def measure(config: RunConfig, side_by_side: int, folder: Path, stopping: Callable[[], bool]) -> float:
        seen.append((config.name, side_by_side))
        return seconds[config.name].pop(0)

    found = run_study(asked, tmp_path / "study", measure=measure, say=lambda _: None)
    assert seen == 2 * [("guided", 3), ("unguided", 3)]
    assert steps == {("guided", 0): 75, ("unguided", 0): 120, ("guided", 1): 75, ("unguided", 1): 120}
    assert list(steps) == [("guided", 0), ("unguided", 0), ("guided", 1), ("unguided", 1)]
    assert found["steps"]["guided"] == {"steps": 75, "seconds_per_step": 0.4}
    sentence = "0.5 minutes of training for each arm (a step of guided 400.0 ms, unguided 250.0 ms)"
    assert sentence in (tmp_path / "study" / "study.md").read_text()
    # Resumed on a machine of another speed, it is the same study.
    run_study(asked, tmp_path / "study", resume=True, measure=lambda *_: pytest.fail("measured"), say=lambda _: None)
    assert steps[("unguided", 1)] == 120


def test_an_arm_that_cannot_be_measured_fails_and_the_other_runs(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr("depthjepa.study.processes.spawn", lambda content, *_: started.append(content) or Ended())

    def measure(config: RunConfig, *_: Any) -> float:
        if config.name == "guided":
            raise RunStopped("loss is nan")
        return 0.1

    asked = twins(pairs, minutes=0.5, settings=(f"data.root={pairs}", *SETTINGS))
    found = run_study(asked, tmp_path / "study", measure=measure, say=lambda _: None)
    assert {content["name"] for content in started} == {"unguided"}
    expected = [{"arm": "guided", "seed": seed, "reason": "loss is nan"} for seed in (0, 1)]
    assert [entry for entry in found["failed"] if entry["arm"] == "guided"] == expected


def test_all_runs_of_a_study_train_in_one_precision(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that share a study may each multiply another one faster: the first that begins chooses."""
    chosen, faster = [], iter(["bf16", "fp32"])
    monkeypatch.setattr(runtime, "faster_precision", lambda _: next(faster))
    monkeypatch.setattr(
        "depthjepa.study.processes.spawn",
        lambda content, *_: chosen.append(content["train"]["precision"]) or Ended(),
    )
    asked = twins(pairs, settings=(f"data.root={pairs}", *SETTINGS, "train.steps=2", "train.precision=auto"))
    for part in (0, 1):
        run_study(asked, tmp_path / "study", shard=(part, 2), say=lambda _: None)
    assert chosen == 4 * ["bf16"]


def keyed(content: dict[str, Any]) -> dict[tuple[str, int], Any]:
    return {(content["name"], content["seed"]): content["train"]["steps"]}


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_step_is_measured_on_real_steps_and_leaves_nothing(pairs: Path, tmp_path: Path, side_by_side: int) -> None:
    config = resolve(twins(pairs, minutes=1, settings=(f"data.root={pairs}", *SETTINGS)))["guided"]
    seconds = measure_seconds(config, side_by_side, tmp_path, lambda: False)
    alone = train(
        replace(config, train=replace(config.train, steps=60)), tmp_path / "alone", say=lambda _: None
    )["seconds"]  # fmt: skip
    assert 0.3 * alone / 60 < seconds < 10 * side_by_side * alone / 60
    assert [each.name for each in tmp_path.iterdir()] == ["alone"]
    broken = build_config(to_mapping(config), FAILING)
    with pytest.raises(RunStopped, match=r"Lower optim\.lr"):
        measure_seconds(broken, side_by_side, tmp_path, lambda: False)


# faults before the first run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"arms": {"a": ["optim.lrr=1"]}},
            "arm 'a': configuration: unknown key 'optim.lrr' (did you mean 'optim.lr'?)",
        ),
        ({"arms": {"../up": []}}, "arm '../up': the name is to name a folder"),
        ({"arms": {"study.json": []}}, "arm 'study.json': the name is to name a folder"),
        ({"arms": {"random encoder": []}}, "arm 'random encoder': the name is to name a folder"),
        ({"arms": {"chance": []}}, "arm 'chance': tables have a row of this name"),
        ({"arms": {"a": ["seed=3"]}}, "arm 'a': seed is given by `seeds` of a study"),
        ({"arms": {"a": ["data.root=nowhere"]}}, "arm 'a': data.root: there is no folder nowhere"),
        ({"arms": {"a": ["model.patch_size=7"]}}, "arm 'a': model.patch_size=7 does not divide"),
        ({"arms": {"a": ["init.checkpoint=none.pt"]}}, "arm 'a': there is no checkpoint none.pt"),
        ({"arms": {"a": ["train.epochs=1", "train.steps=2"]}}, "arm 'a': give one of train.epochs and train.steps"),
        ({"arms": {"a": ["init.frozen_steps=2"]}}, "arm 'a': init.frozen_steps=2 trains the head alone"),
        ({"arms": {"a": ["train.accumulate=3"]}}, "arm 'a': train.batch_size=8 must be a multiple"),
        ({"minutes": 1.0}, "arm 'guided': train.steps is given by `minutes` of a study"),
        ({"arms": {}}, "needs at least one arm and one seed"),
        ({"seeds": (1, 2, 1)}, "seed 1 is given twice"),
        ({"probes": ("depth", "depth")}, "probe 'depth' is given twice"),
        ({"probes": ("lineal",)}, "there is no probe 'lineal' (did you mean 'linear'?)"),
        ({"probes": ("linear",)}, "arm 'guided': the linear probe needs labels"),
        ({"name": "a/b"}, "name 'a/b' is to name a folder"),
        ({"judged": {"laser": ("dept", "x")}}, "there is no probe 'dept' (did you mean 'depth'?)"),
        ({"judged": {"depth": ("depth", "scenes")}}, "judged: 'depth' is to name a file that no probe has"),
        ({"judged": {"a.b": ("depth", "scenes")}}, "judged: 'a.b' is to name a file"),
        ({"judged": {"laser": ("depth", "nowhere")}}, "arm 'guided': data.root: there is no folder nowhere"),
        (
            {"judged": {"laser": ("knn", "scenes", "evaluation.fit_on=scenes:1")}},
            "evaluation.fit_on has no effect on the probe laser: the probe that reads it is depth",
        ),
        ({"judged": {"laser": ("depth", "scenes", "evaluation.judge_training=true")}}, "judge_training=true needs"),
    ],
)
def test_faults_are_met_before_anything_is_written(
    pairs: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as fault:
        run_study(twins(pairs, **changes), tmp_path / "study", say=lambda _: None)
    assert said in str(fault.value)
    assert not (tmp_path / "study").exists()


def test_all_arms_at_fault_are_named_at_once(pairs: Path) -> None:
    flat = write_flat(pairs.parent / "flat", 8)
    arms = {"a": ["optim.lrr=1"], "b": ["guidance.kind=feature", f"data.root={flat}"], "c": []}
    with pytest.raises(BadInput) as fault:
        resolve(twins(pairs, arms=arms))
    assert "arm 'a': configuration: unknown key" in str(fault.value)
    assert "arm 'b': the depth probe needs depth" in str(fault.value)
    assert "arm 'c'" not in str(fault.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"base": "demo", "arms": {"a": None}, "seeds": 1, "minuts": 3},
            "unknown key 'minuts' (did you mean 'minutes'?)",
        ),
        (
            {"base": "demo", "arms": {"a": None}, "seeds": 1, "minutes": -1},
            "minutes: should be greater than 0, got -1",
        ),
        ({"base": "demo", "arms": {"a": "x=1"}, "seeds": 1}, "arms.a: should be a list, got 'x=1'"),
        ({"arms": {"a": None}, "seeds": 1}, "base is missing"),
        ([1], "does not hold keys and values"),
    ],
)
def test_a_study_file_is_strict(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(BadInput) as fault:
        load_study(study_file(tmp_path / "study.yaml", content))
    assert said in str(fault.value)


def test_a_study_file_reads_seeds_as_a_count_and_its_base_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    content = {"base": "mine.yaml", "arms": {"a": None, "b": ["x=1"]}, "seeds": 3}
    found = load_study(study_file(tmp_path / "ours.yaml", content))
    assert (found.name, found.seeds, found.arms) == ("ours", (0, 1, 2), {"a": (), "b": ("x=1",)})
    assert found.base == str(tmp_path / "mine.yaml")
    with pytest.raises(BadInput, match="there is no study 'demo-arm' \\(did you mean 'demo-arms'\\?\\)"):
        load_study("demo-arm")


def test_arms_share_settings_by_anchors(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("base: demo\nseeds: 1\narms:\n  a: &a [x=1, y=2]\n  b: &b z=3\n  both: [*a, *b, w=4]\n")
    with pytest.raises(BadInput, match=r"arms\.b: should be a list, got 'z=3'"):
        load_study(file)
    file.write_text(file.read_text().replace("&b z=3", "[&b z=3]"))
    assert load_study(file).arms == {"a": ("x=1", "y=2"), "b": ("z=3",), "both": ("x=1", "y=2", "z=3", "w=4")}


LARGE = {  # what they need cannot be here; what is not there is all that may be wrong with them
    "paper-figures-2-3": "(IN1K-vit|depthfm-v1|stable-diffusion)",
    "paper-figure-4": "(IN1K-vit|depthfm-v1|stable-diffusion)",
    "paper-pixel-table": "IN1K-vit",
}


@pytest.mark.parametrize("name", LARGE)
def test_arms_of_full_size_lack_nothing_but_downloads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        for split in ("train", "val"):
            save(tmp_path / "imagenet100" / split / f"class-{number}" / "1.png", picture(number))
    write_pairs(tmp_path / "nyuv2")
    monkeypatch.chdir(tmp_path)
    study = load_study(name)
    with pytest.raises(BadInput) as caught:
        resolve(study)
    faults = str(caught.value).split("; arm ")
    assert 0 < len(faults) <= len(study.arms)
    assert all(re.search(LARGE[name], fault) for fault in faults), faults


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data where shipped studies expect them, with latents that are computed and a run that is trained beforehand."""
    pytest.importorskip("diffusers", reason="depthfm-tiny needs the extra `teachers`")
    place = tmp_path_factory.mktemp("at_hand")
    for name in ("imagenette", "imagenette128", "imagenet100"):
        write_classes(place / name)
    for name in ("indoor160", "indoor_many", "kitti2015", "driving_lidar"):
        write_pairs(place / name)
    write_flat(place / "street-photographs", 4, 48)
    write_labelled(place / "camvid-drive")
    network = write_onnx(place / "teachers" / "rt_monodepth_s_ms.onnx", ("depth", "features"))
    (place / "releases").symlink_to(Path(__file__).parents[1] / "releases")
    settings = ("guidance.kind=feature", "guidance.teacher=depthfm-tiny", "guidance.teacher_size=128")
    once = ("train.steps=1", "train.batch_size=4", "train.threads=1", "train.precision=fp32")
    with contextlib.chdir(place):
        teach(build_config({}, ["data.root=imagenette128", *settings]), place / "latents")
        train(load_config("imagenette-small", once), place / "runs" / "imagenette-small", say=lambda _: None)
        streets = ("data.root=scenes:1", "data.scenes_train=4", "data.scenes_val=2")
        teach(build_config({}, [*streets, *settings, "guidance.teacher_steps=1"]), place / "runs" / "streets-latents")
        driving = ["data.root=street-photographs", "guidance.kind=feature", "guidance.teacher=onnx"]
        driving += [f"guidance.teacher_checkpoint={network.relative_to(place)}", "guidance.teacher_size=[192,640]"]
        for name, setting in (
            ("latents", "guidance.teacher_unit=metres"),
            ("features", "guidance.teacher_output=features"),
        ):
            teach(build_config({}, [*driving, setting]), place / "runs" / f"driving-{name}")
        for recipe, name in (("imagenette-small", "streets"), ("paper-unguided-small", "streets-paper")):
            train(load_config(recipe, [*streets, *once]), place / "runs" / name, say=lambda _: None)
    return place


@pytest.mark.parametrize("name", sorted(set(study_names()) - set(LARGE)))
def test_shipped_studies_resolve(name: str, at_hand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(at_hand)
    study = load_study(name)
    assert resolve(study).keys() == study.arms.keys()


@pytest.fixture
def printed(pairs: Path, tmp_path: Path) -> Study:
    """The study of docs/studies.md, on pairs that are here."""
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("RGBD", str(pairs)))
    return load_study(file)


def test_the_printed_study_resolves_and_shows_every_key(printed: Study) -> None:
    assert {arm: config.guidance.kind for arm, config in resolve(printed).items()} == {
        "unguided": "none",
        "depth": "feature",
        "picture": "feature",
        "weak": "feature",
    }
    left = {each.name for each in fields(Study) if getattr(printed, each.name) == each.default}
    assert left <= {"printed", "side_by_side"}


@pytest.mark.slow
def test_the_printed_study_runs(printed: Study, tmp_path: Path) -> None:
    quick = replace(printed, minutes=None, seeds=(0, 1), settings=(*printed.settings, *SETTINGS, "train.steps=5"))
    content = run_study(quick, tmp_path / "out")
    assert not content["failed"]
    assert [claim["against"] for claim in content["claimed"]] == ["unguided", "picture"]


def test_settings_behind_a_studys_name_are_for_all_arms(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study_file(
        tmp_path / "ours.yaml",
        {"base": "rgbd", "arms": {"a": None}, "seeds": 1, "settings": ["data.root=theirs", "seed=1"]},
    )
    asked: list[Any] = []

    def run(study: Any, *_: Any, **__: Any) -> Any:
        asked.append(study)
        raise RunStopped("enough")

    monkeypatch.setattr("depthjepa.study.running.run_study", run)
    found = CliRunner().invoke(cli.app, ["study", str(file), f"data.root={pairs}", "--out", str(tmp_path / "out")])
    assert found.exit_code != 0 and asked[0].settings == ("seed=1", f"data.root={pairs}")


def test_runs_side_by_side_share_the_threads(pairs: Path) -> None:
    settings = (
        f"data.root={pairs}",
        *(text for text in SETTINGS if not text.startswith("train.threads")),
        "train.steps=2",
    )
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        shares = [
            resolve(twins(pairs, settings=settings, side_by_side=count))["guided"].train.threads
            for count in (1, 2, 3, 8)
        ]
    finally:
        torch.set_num_threads(before)
    assert shares == [4, 2, 1, 1]


# arithmetic


def test_spread_is_numpys_mean_and_sample_deviation() -> None:
    values = np.random.default_rng(0).normal(3, 2, 7)
    found = spread(values.tolist())
    ends = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert (found["mean"], found["deviation"], found["n"]) == (
        pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)), 7
    )  # fmt: skip
    assert spread([2.5]) == {"mean": 2.5, "deviation": None, "n": 1, "low": None, "high": None}


def test_figures_of_several_data_sets_have_names_of_their_own(tmp_path: Path) -> None:
    """Of folders of one name too, and one with what separates keys."""
    folder = RunFolder(tmp_path)
    write_whole(tmp_path / "config.yaml", yaml.safe_dump({"model": {}}))
    write_whole(tmp_path / "summary.json", json.dumps({"loss": 1.0}))
    sets = ["a/pairs", "b/pairs", "v1.0"]
    column = {"key": "absrel", "label": "AbsRel"}
    one = {"protocol": "", "columns": [column]}
    tables = [
        one | {"data": data, "rows": [{"name": "mean map", "absrel": 9.0}, {"name": "mine", "absrel": float(number)}]}
        for number, data in enumerate([*sets, ",".join(sets)])
    ]
    write_whole(tmp_path / "probes" / "depth.json", json.dumps(tables[-1] | {"sets": tables[:-1]}))
    assert folder.probe("depth")["sets"] == tables[:-1]
    found = read_finished(tmp_path, "mine", 0, ["depth"])
    keys = ["depth@pairs.absrel", "depth@pairs-2.absrel", "depth@v1_0.absrel", "depth.absrel"]
    assert found.figures == {"loss": 1.0} | {key: float(number) for number, key in enumerate(keys)}
    assert found.baselines == {"mean map": dict.fromkeys(keys, 9.0)} and list(found.columns) == keys


def test_random_encoders_of_unlike_arms_stand_apart() -> None:
    runs = [
        Finished(arm, seed, {}, {}, {"random encoder": {"depth.rmse": value}}, {}, kind)
        for arm, seed, value, kind in (
            ("a", 0, 1.0, "small"), ("b", 0, 2.0, "small"), ("a", 1, 4.0, "small"), ("large", 0, 9.0, "large")
        )
    ]  # fmt: skip
    small, large = baseline_rows(runs)
    assert (small["arms"], small["runs"], large["arms"]) == (["a", "b"], 2, ["large"])
    expected = np.array([1.5, 4.0])
    assert small["figures"]["depth.rmse"] == spread(expected.tolist())
    assert large["figures"]["depth.rmse"] == spread([9.0])


def test_a_baseline_of_many_arms_does_not_list_them_all() -> None:
    rows = [{"name": "mean map", "arms": arms, "runs": 1, "figures": {}} for arms in ([*"abcde"], ["f", "g"])]
    content: dict[str, Any] = {"name": "many", "about": "", "minutes": None, "seeds": [0], "side_by_side": 1}
    content |= {"arms": {}, "runs": [], "failed": [], "sentences": [], "columns": [], "means": {}, "baselines": rows}
    table = markdown(content)
    assert "| mean map (a and 4 more) |" in table
    assert "| mean map (f, g) " in table


def test_a_study_without_finished_runs_has_its_table(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "guided").mkdir()
    (tmp_path / "guided" / "seed-1.failed").write_text("no memory")  # as another part of the study may have left it
    content = write_tables(plain(asdict(twins(pairs))), tmp_path, lambda content: ([], ["- Nothing."]))
    assert (content["runs"], content["baselines"]) == ([], [])
    text = (tmp_path / "study.md").read_text()
    assert "| guided |" in text and "0 of 4 runs finished" in text
    assert "- guided, seed 1 failed: no memory" in text


def test_a_study_says_what_may_be_claimed(done: Done) -> None:
    (claimed,) = done.content["claimed"]
    figures = {(run["arm"], run["seed"]): run["figures"]["depth.r2_within"] for run in done.content["runs"]}
    expected = [figures["guided", seed] - figures["unguided", seed] for seed in (0, 1)]
    assert claimed["differences"] == pytest.approx(expected) and claimed["seeds"] == [0, 1]
    assert claimed["mean"] == pytest.approx(np.mean(expected)) and claimed["p"] >= 0.5  # two seeds prove nothing
    assert claimed["images"] == 8 and claimed["bootstrap_low"] <= claimed["mean"] <= claimed["bootstrap_high"]
    assert claimed["sentence"] in (done.folder / "study.md").read_text()
    assert "guided" in claimed["sentence"] and "2 paired seeds" in claimed["sentence"]


def test_the_figures_of_single_images_add_up_to_the_difference(done: Done) -> None:
    """What the bootstrap draws from has the mean that the tables have."""
    found = differences_by_image(done.folder, "guided", "unguided", (0, 1), "depth")
    assert found is not None
    values, what = found
    assert what == "images"  # nothing tells where they were taken
    assert values.mean(1) == pytest.approx(done.content["claimed"][0]["differences"], abs=1e-6)


@pytest.mark.slow
def test_runs_are_probed_on_other_data_as_well(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted on their own data, judged on all images of another set, and claimed of by its places."""
    for place in ("north", "south", "west"):
        for number in range(3):
            for split in ("train", "val"):
                name = f"{place}_{split}{number}.png"
                save(tmp_path / "other" / split / "rgb" / name, picture(900 + number))
                save(tmp_path / "other" / split / "depth" / name, millimetres(900 + number))
    settings = (f"evaluation.fit_on={pairs}", "evaluation.judge_training=true")
    study = twins(
        pairs,
        settings=(f"data.root={pairs}", *SETTINGS, "train.steps=2"),
        probes=(),
        judged={"laser": ("depth", str(tmp_path / "other"), *settings)},
        claims=(Comparison("laser.r2_within", "guided", ("unguided",), 0.02),),
    )
    monkeypatch.setattr("depthjepa.study.processes.spawn", inside)
    content = run_study(study, tmp_path / "study", say=lambda _: None)
    place = tmp_path / "study/guided/seed-1"
    assert {file.name for file in (place / "probes").iterdir()} == {"laser.json", "laser.npz"}
    expected = depthjepa.probe(place, "depth", tmp_path / "other", settings=settings)
    figures = next(run["figures"] for run in content["runs"] if (run["arm"], run["seed"]) == ("guided", 1))
    assert figures["laser.r2_within"] == next(row["r2_within"] for row in expected["rows"] if row["name"] == "guided")
    with np.load(place / "probes/laser.npz") as arrays:
        assert len(arrays["group"]) == 18  # training and validation images
    assert {row["name"] for row in content["baselines"]} >= {"mean map", "random encoder"}
    (claimed,) = content["claimed"]
    assert claimed["places"] == 3 and "images" not in claimed
    found = differences_by_image(tmp_path / "study", "guided", "unguided", (0, 1), "laser")
    assert found is not None and found[1] == "places"
    assert found[0].mean(1) == pytest.approx(claimed["differences"], abs=1e-6)
    assert "Over 3 places as well" in (tmp_path / "study/study.md").read_text()
    # Another question is another study; the same one has nothing left to do.
    with pytest.raises(BadInput, match="judged"):
        run_study(replace(study, judged={}, claims=()), tmp_path / "study", resume=True, say=lambda _: None)
    monkeypatch.setattr("depthjepa.study.processes.spawn", None)
    assert run_study(study, tmp_path / "study", resume=True, say=lambda _: None)["runs"] == content["runs"]


def made_up(figures: dict[str, list[float]], better: str = "higher") -> dict[str, Any]:
    runs = [
        {"arm": arm, "seed": seed, "figures": {"knn.accuracy": value}, "baselines": {}}
        for arm, values in figures.items()
        for seed, value in enumerate(values)
    ]
    columns = [{"key": "knn.accuracy", "label": "accuracy", "better": better}]
    return {"columns": columns, "runs": runs, "seeds": list(range(8))}


def test_comparisons_are_paired_by_seed_and_corrected_together(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=8) * 0.01
    shared = np.random.default_rng(1).normal(size=8)  # between seeds, which pairing takes away
    content = made_up(
        {
            "G": (shared + 0.1 + noise).tolist(),
            "U": shared.tolist(),
            "P": (shared + 0.1 + noise[::-1] * 0.1).tolist(),
            "S": shared[:1].tolist(),  # one seed in common is too few
        }
    )
    comparison = Comparison("knn.accuracy", "G", ("U", "P", "S"), 0.05)
    against_u, against_p = claims_of(comparison, content, tmp_path)
    assert against_u["p"] == pytest.approx(2 / 256) and against_u["p_adjusted"] == pytest.approx(6 / 256)  # of three
    waiting = replace(comparison, against=("S", "U"), correction="sequence")  # S comes first, and is not there yet
    assert [each["p_adjusted"] for each in claims_of(waiting, content, tmp_path)] == [1.0]
    assert against_u["sentence"].startswith("G is better than U in accuracy (knn)")
    assert against_p["equivalent"] and against_p["not_inferior"]
    assert "G and P are equivalent in accuracy (knn) within ±0.05" in against_p["sentence"]
    assert "images" not in against_u  # no figures of single images are kept
    (upside_down,) = claims_of(
        Comparison("knn.accuracy", "G", ("U",), 0.05), content | {"columns": made_up({}, "lower")["columns"]}, tmp_path
    )
    assert upside_down["sentence"].startswith("G is worse than U") and not upside_down["not_inferior"]
    assert lines([against_u]) == [f"- {against_u['sentence']}"]


def test_what_no_run_trained_is_compared_with_the_figures_of_the_first_arm_s_tables(tmp_path: Path) -> None:
    content = made_up({"G": [0.5, 0.6, 0.7], "U": [0.1, 0.1, 0.1]})
    for run in content["runs"]:
        beside = {"G": 0.2, "U": 9.0}[run["arm"]]  # in U's tables another network stands under the name
        run["baselines"] = {"random encoder": {"knn.accuracy": beside + run["seed"] / 100}}
    random, other = claims_of(Comparison("knn.accuracy", "G", ("random encoder", "U"), 0.05), content, tmp_path)
    assert random["differences"] == pytest.approx([0.3, 0.39, 0.48]) and other["differences"][0] == pytest.approx(0.4)
    assert "random encoder in accuracy (knn)" in random["sentence"]
    assert claims_of(Comparison("knn.accuracy", "G", ("mean map",), 0.05), content, tmp_path) == []


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (("depth.r2_within", "gided", ("unguided",), 0.02), "there is no arm 'gided' (did you mean 'guided'?)"),
        (("depth.r2_within", "guided", ("random",), 0.02), "there is no arm 'random' (did you mean 'random encoder'?)"),
        (("depth.r2_within", "mean map", ("guided",), 0.02), "there is no arm 'mean map'"),
        (("depth.r2_within", "guided", ("guided",), 0.02), "guided is to stand against others, not against itself"),
        (("knn.accuracy", "guided", ("unguided",), 0.02), "knn.accuracy is no figure of a probe of the study"),
    ],
)
def test_claims_name_arms_and_figures_of_the_study(pairs: Path, claim: Any, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        resolve(twins(pairs, claims=(Comparison(*claim),)))


@pytest.mark.slow
def test_shards_do_every_run_once_and_the_last_one_has_them_all(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def spawn(content: dict[str, Any], place: Path, tasks: Sequence[str]) -> Ended:
        done.append(f"{place.parent.name}/{place.name}")
        return inside(content, place, tasks)

    monkeypatch.setattr("depthjepa.study.processes.spawn", spawn)
    study = twins(pairs, settings=(f"data.root={pairs}", *SETTINGS, "train.steps=1"), probes=("depth",))
    first = run_study(study, tmp_path / "study", shard=(0, 3), say=lambda _: None)
    assert done == ["guided/seed-0", "unguided/seed-1"] and len(first["runs"]) == 2 and not first["claimed"]
    for number in (1, 2):
        last = run_study(study, tmp_path / "study", shard=(number, 3), say=lambda _: None)
    assert sorted(done) == sorted(f"{arm}/seed-{seed}" for arm in ("guided", "unguided") for seed in (0, 1))
    assert len(last["runs"]) == 4 and len(last["claimed"]) == 1


def test_shards_that_do_not_exist_or_would_measure_anew_are_refused(pairs: Path, tmp_path: Path) -> None:
    for shard in ((3, 3), (0, 0)):
        with pytest.raises(BadInput, match="--shard"):
            run_study(twins(pairs), tmp_path / "study", shard=shard)
    timed = twins(pairs, minutes=1.0, settings=(f"data.root={pairs}", *SETTINGS))
    with pytest.raises(BadInput, match="as many steps as one machine measures"):
        run_study(timed, tmp_path / "study", shard=(0, 2))
    assert not (tmp_path / "study").exists()
