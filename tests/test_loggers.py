"""A logger is one row: what a run tells it, over a stop and a resume, has no gap and nothing twice."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from depthjepa import cost, training
from depthjepa.config.reading import load_config
from depthjepa.config.run_config import to_mapping
from depthjepa.faults import BadInput, RunStopped
from depthjepa.kinds import Row
from depthjepa.logbook import RunFolder
from depthjepa.loggers import table
from tiny_images import write_pairs
from tiny_runs import CLOCK, Call, metrics, recipe_file, run, tiny

CHOICES = "should be 'run_folder', 'tensorboard', 'wandb' or 'mlflow'"


class Planted:
    """Keeps every call, with the path it was made for."""

    needs = None
    calls: list[tuple[str, Any]]

    def __init__(self, path: Path) -> None:
        self.calls.append(("made", path))

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any], step: int) -> None:
        self.calls.append(("begin", (config, environment, step)))

    def log(self, record: Mapping[str, Any]) -> None:
        self.calls.append(("log", dict(record)))

    def picture(self, name: str, figure: Any, step: int) -> None:
        self.calls.append(("picture", (name, step)))

    def table(self, name: str, table: Mapping[str, Any], step: int) -> None:
        self.calls.append(("table", (name, dict(table), step)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.calls.append(("finish", dict(summary)))

    def close(self) -> None:
        self.calls.append(("close", None))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What a planted logger `planted` is told in this test."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    monkeypatch.setattr(Planted, "calls", [], raising=False)
    module = ModuleType("planted")
    module.LOGGER = Planted
    row = Row("planted", "what a test is told", "loggers.planted")
    monkeypatch.setitem(sys.modules, f"depthjepa.{row.module}", module)
    monkeypatch.setattr(table, "LOGGERS", replace(table.LOGGERS, rows=(*table.LOGGERS.rows, row)))
    return Planted.calls


def test_a_planted_logger_gets_a_stopped_and_resumed_run_without_gap_or_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, Any]]
) -> None:
    pairs, folder = write_pairs(tmp_path / "pairs", 12, 6), tmp_path / "run"
    settings = ("train.steps=8", "train.probe_every=4", "train.checkpoint_every=1000", "train.loggers=planted")
    step = training.train_step

    def stopped_after_three(state: Any, parts: Any) -> dict[str, Any]:
        if state.step == 6:  # the newest checkpoint is that of the probe; two steps come after it
            raise RunStopped("the power went out")
        figures: dict[str, Any] = step(state, parts)
        return figures

    monkeypatch.setattr(training, "train_step", stopped_after_three)
    with pytest.raises(RunStopped, match="power"):
        run(pairs, folder, *settings)
    assert [name for name, _ in calls] == ["made", "begin", *["log"] * 7, "close"]  # six steps and a probe
    first = [content for name, content in calls if name == "log"]
    calls.clear()
    monkeypatch.setattr(training, "train_step", step)
    summary = run(pairs, folder, *settings, resume=True)
    assert [name for name, _ in calls] == ["made", "begin", *["log"] * 5, *["picture"] * 2, "finish", "close"]
    assert [content for name, content in calls if name == "picture"] == [("masks", 8), ("features", 8)]
    assert calls[0][1] == folder
    config, environment, begun = calls[1][1]
    assert config == to_mapping(tiny(pairs, *settings)) and environment["world"] == 1
    assert begun == 4 and calls[-2][1] == summary
    second = [content for name, content in calls if name == "log"]
    told = [record for record in first if record["step"] <= begun] + second
    assert [record["step"] for record in told] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert told == RunFolder(folder).metrics()  # plain numbers: they went through a file and are the same
    run(pairs, tmp_path / "whole", *settings)
    assert [{key: record[key] for key in record if key not in CLOCK} for record in told] == metrics(tmp_path / "whole")


def test_a_logger_is_closed_where_a_run_is_interrupted_and_gets_no_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, Any]]
) -> None:
    step = training.train_step

    def interrupted(state: Any, parts: Any) -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        figures: dict[str, Any] = step(state, parts)
        return figures

    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(RunStopped, match="stopped at step 1"):
        run(write_pairs(tmp_path / "pairs", 12, 6), tmp_path / "run", "train.steps=8", "train.loggers=[planted]")
    assert [name for name, _ in calls] == ["made", "begin", "log", "close"]


def test_naming_the_run_folder_changes_nothing_and_loggers_may_change_on_resume(
    tmp_path: Path, calls: list[tuple[str, Any]]
) -> None:
    pairs = write_pairs(tmp_path / "pairs", 12, 6)
    run(pairs, tmp_path / "named", "train.steps=2", "train.loggers=[run_folder]")
    run(pairs, tmp_path / "plain", "train.steps=2")
    assert metrics(tmp_path / "named") == metrics(tmp_path / "plain")
    (tmp_path / "plain" / "summary.json").unlink()
    run(pairs, tmp_path / "plain", "train.steps=2", "train.loggers=[planted, run_folder]", resume=True)
    assert [name for name, _ in calls] == ["made", "begin", *["picture"] * 2, "finish", "close"]


def test_an_unknown_logger_is_refused_with_the_nearest(tmp_path: Path, call: Call) -> None:
    message = rf"train\.loggers='run_foldr': {CHOICES} \(did you mean 'run_folder'\?\)"
    with pytest.raises(BadInput, match=message):
        load_config("demo", ["train.loggers=run_foldr"])
    recipe = recipe_file(tmp_path / "recipe.yaml", tmp_path)
    status, _, said = call("train", recipe, "train.loggers=[tensor_bored]")
    assert status == 2
    hint = "(did you mean 'tensorboard'?)"
    assert said == f"depthjepa: configuration: train.loggers='tensor_bored': {CHOICES} {hint}\n"
