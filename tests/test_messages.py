"""Messages that answer wrong or odd input: what, where, and the nearest valid choice, in one line with status 2."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from depthjepa import cost, training
from depthjepa.faults import RunStopped
from depthjepa.logbook import RunFolder
from tiny_images import write_flat, write_pairs
from tiny_runs import GUIDED, Call, run

STUDY = "base: photos\narms: {plain: []}\nseeds: 1\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with RGB-D data in `pairs`, photographs in `flat`, a run in `run` and study files."""
    folder = tmp_path_factory.mktemp("messages")
    write_pairs(folder / "pairs")
    write_flat(folder / "flat", 3)
    (folder / "unknown.yaml").write_text(STUDY + "probs: [depth]\n")
    (folder / "missing.yaml").write_text("arms: {plain: []}\nseeds: 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        run(folder / "pairs", folder / "run", *GUIDED, "train.steps=2")
    return folder


CASES = [
    (("train", "photos", "data.root="), r"data\.root= is empty: give a value$"),
    (("train", "photos"), r"data\.root is empty: say which data \(data\.root=, or --data\): scenes"),
    (("train", "photos", "data.root=scenes", "data.image_size=[64]"), r"data\.image_size=\[64\]: should be "),
    (
        ("train", "demo", "guidance.teacher=depthanything"),
        r"guidance\.teacher='depthanything': should be .* \(did you mean 'huggingface'\?\)",
    ),
    (("train", "demo", "guidance.teacher=dept"), r"\(did you mean 'depth'\?\)"),
    (
        ("probe", "run", "depth", "evaluation.nearest=1"),
        r"evaluation\.nearest has no effect here: it takes evaluation\.d",
    ),
    (("study", "nope"), r"there is no study 'nope'; give a file, or one of .*pixel-causes"),
    (("study", "unknown.yaml"), r"unknown\.yaml: unknown key 'probs' \(did you mean 'probes'\?\)"),
    (("study", "missing.yaml"), r"missing\.yaml: base is missing$"),
    (("predict", "run", "gone", "--out", "maps"), r"there is no folder .*gone"),
    (("embed", "run", "", "--out", "a.npz"), r"an argument is empty: give a value"),
    (
        ("train", "demo", "--steps", "5"),
        r"there is no option --steps: settings are written KEY=VALUE, as train\.steps=",
    ),
    (("train", "demo", "--resum"), r"--resum.*--resume"),
    (
        ("train", "run"),
        r"run is a run: go on with it by `depthjepa train run/config\.yaml --out run --resume`, or repeat",
    ),
    (("train", "demo", "nonsense=1"), r"unknown key 'nonsense'$"),
    (("train", "demo", "optim.lr=1", "optim.lr=2"), r"optim\.lr: given more than once"),
]


@pytest.mark.parametrize(("arguments", "said"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_wrong_input_is_answered_in_one_line(
    arguments: tuple[str, ...], said: str, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    status, output, errors = call(*arguments)
    assert status == 2 and output == ""
    assert errors.startswith("depthjepa: ") and errors.count("\n") == 1
    assert re.search(said, errors.strip()), errors
    assert sorted(place.rglob("*")) == before


def test_what_a_message_advises_can_be_done(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is given in the place of a recipe: both commands that the message has."""
    monkeypatch.chdir(place)
    _, _, errors = call("train", "run")
    first, second = re.findall(r"`depthjepa (.*?)`", errors)
    assert call(*first.split())[0] == 0
    assert call(*second.replace("ELSEWHERE", "again").split())[0] == 0
    assert RunFolder(place / "again").summary()["steps"] == 2


IMAGES = {
    "torch.zeros(1, 3, 50, 48)": "patches of 8 px do not divide images of 50 x 48 px: .* is 48 x 48",
    "torch.zeros(3, 48, 48)": r"takes images \[b, 3, height, width\], not a tensor \(3, 48, 48\) float32",
    "torch.zeros(1, 1, 48, 48)": r"not a tensor \(1, 1, 48, 48\) float32",
    "torch.zeros(1, 3, 48, 48, dtype=torch.uint8)": r"floating point: RGB in \[0, 1\], normalised .* uint8",
}
TRY = """
import depthjepa, torch
encoder = depthjepa.load_encoder({run!r})
for images in {images!r}:
    try:
        encoder(eval(images))
    except depthjepa.BadInput as fault:
        print(fault)
"""


@pytest.mark.slow
def test_an_encoder_says_what_it_takes(place: Path) -> None:
    """In a process of its own: while tests run, the shapes in signatures answer first."""
    code = TRY.format(run=str(place / "run"), images=list(IMAGES))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, said in zip(ended.stdout.splitlines(), IMAGES.values(), strict=True):
        assert re.search(said, line), line


@pytest.mark.slow
def test_a_stopped_run_says_how_far_it_came(place: Path, tmp_path: Path, call: Call) -> None:
    """Its summary, its report and its probes name the step, and what was recorded of its cost."""
    step = training.train_step

    def stopped_in_the_third(state: Any, parts: Any) -> dict[str, Any]:
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
        figures: dict[str, Any] = step(state, parts)
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        patch.setattr(training, "train_step", stopped_in_the_third)
        with pytest.raises(RunStopped):
            run(place / "pairs", tmp_path / "cut", "train.steps=40", "train.checkpoint_every=1000")
    summary = RunFolder(tmp_path / "cut").summary()
    assert (summary["finished"], summary["steps"], summary["of_steps"]) == (False, 3, 40)
    assert not RunFolder(tmp_path / "cut").finished
    assert summary["seconds"] > 0 and summary["parameters"] > 0
    assert call("probe", tmp_path / "cut", "depth")[0] == 0
    assert RunFolder(tmp_path / "cut").probe("depth")["step"] == 3
    assert call("report", tmp_path / "cut", "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "meant for 40 steps" in page and "was stopped at step 3 of 40" in page
    assert "3 of 40" in page and "the weights are those of step 3 of 40" in page


def test_a_run_that_ends_in_its_pictures_is_not_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its last step all is learned, but what the report shows is still to be written: resuming does it."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)

    def full(*_: object) -> None:
        raise RunStopped("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthjepa.run.summary.write_pictures", full)
        with pytest.raises(RunStopped):
            run(place / "pairs", tmp_path / "run", "train.steps=2")
    folder = RunFolder(tmp_path / "run")
    assert folder.summary()["steps"] == folder.summary()["of_steps"] == 2 and not folder.finished
    assert run(place / "pairs", tmp_path / "run", "train.steps=2", resume=True)["finished"] and folder.finished
    assert any((tmp_path / "run" / "figures").iterdir())
