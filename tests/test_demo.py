"""The demo: three runs from the teacher to the report, kept, gone on with, and refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depthjepa import cost
from depthjepa.study import processes
from tiny_runs import Call, inside

FEW = (
    "data.scenes_train=24",
    "data.scenes_val=16",
    "train.steps=2",
    "train.batch_size=8",
    "train.whitening_images=8",
    "model.width=24",
    "model.depth=2",
    "predictor.width=24",
    "train.precision=fp32",
)
DEPTH = ("guidance.teacher=depth", "guidance.teacher_size=512", "guidance.teacher_steps=2")  # no network is asked


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "spawn", inside)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


def test_three_runs_become_a_table_and_a_page(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    status, said, wrong = call("demo", *FEW, *DEPTH, "--out", out)
    assert status == 0, wrong
    content = json.loads((out / "demo.json").read_text())
    assert list(content["rows"])[-3:] == ["guided", "unguided", "supervised"]
    assert {"mean map", "raw patches", "random encoder"} <= set(content["rows"])
    for row in ("guided", "unguided", "supervised", "random encoder"):
        assert {"r2_within", "aligned_absrel", "val_accuracy"} <= set(content["rows"][row])
    page = (out / "report.html").read_text()
    assert "guided" in page and "unguided" in page and "supervised" in page
    assert "3 of 3" in said
    # Once more: nothing is trained or probed a second time.
    monkeypatch.setattr(processes, "spawn", lambda *_: pytest.fail("all runs are done"))
    status, _, wrong = call("demo", *FEW, *DEPTH, "--out", out)
    assert status == 0, wrong
    status, _, wrong = call("demo", *FEW, *DEPTH, "optim.lr=1e-4", "--out", out)
    assert status == 2 and "holds a demo with other values of optim.lr: choose another --out" in wrong


def test_a_fault_of_a_run_is_the_demo_s(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "why_failed", lambda *_: processes.BadInput("no room"))
    status, _, wrong = call("demo", *FEW, *DEPTH, "--out", tmp_path / "demo")
    assert status == 2 and wrong.splitlines()[-1].endswith("no room")
    assert not (tmp_path / "demo" / "report.html").exists()
