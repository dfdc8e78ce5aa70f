"""What is at work is told: on a terminal as bars, elsewhere in a line of text every so often, whatever goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from depthjepa import progress
from depthjepa.progress import task, track
from tiny_images import write_pairs
from tiny_runs import GUIDED, Call, run


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def wait_for_line() -> None:
    time.sleep(0.2)


def test_work_that_does_not_advance_is_told_all_the_same(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with task("a long step"):
        wait_for_line()
    assert len(told := lines_of(capsys)) >= 2
    assert set(told) == {"a long step: for 0 s"}
    wait_for_line()
    assert lines_of(capsys) == []  # and nothing once it has ended


def test_a_task_within_another_stands_behind_it(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with task("fit", 40, done=10) as outer:
        outer.done, outer.figures = 20, "loss 0.5"
        for number in track(range(3), "images", 3):
            if number == 1:
                wait_for_line()
    assert "fit: 20 of 40, loss 0.5, about 0 s left; images: 1 of 3, about 0 s left" in lines_of(capsys)


def test_a_walk_that_is_broken_off_is_no_longer_told(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with task("all"):
        for _ in track(range(3), "walk", 3):
            break
        lines_of(capsys)
        wait_for_line()
        assert set(lines_of(capsys)) == {"all: for 0 s"}


def test_the_time_left_is_that_of_the_steps_to_come_at_the_speed_of_this_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with task("train", 1000, done=400) as this:
        assert this.words == "400 of 1000"
        clock[0], this.done = 160.0, 500
        assert this.words == "500 of 1000, about 5 min left"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_of_several_tells(
    rank: str, often: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with task("work"):
        wait_for_line()
    assert bool(lines_of(capsys)) == (rank == "0")


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    with task("train: a run", 10) as this:
        this.done, this.figures = 4, "loss 1.234"
        time.sleep(0.6)
    shown = capsys.readouterr().out
    assert "train: a run" in shown and "━" in shown and "4 of 10, loss 1.234" in shown


COMMANDS = {
    "train": (("train", "run.yaml", "train.steps=60", "--out", "other"), " of 60, loss "),
    "probe": (("probe", "run", "depth", "evaluation.depth_readout=dpt", "evaluation.depth_steps=40"), "dpt readout"),
    "teach": (("teach", "--data", "pairs", "--teacher", "depthfm-tiny", "--out", "cache"), "latents"),
    "embed": (("embed", "run", "pairs/val/rgb", "--out", "a.npz"), "embed: for"),
}


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.slow if name in ("probe", "teach", "train") else ()) for name in COMMANDS],
)
def test_commands_whose_output_goes_to_a_file_tell_how_far_they_are(
    command: str, often: None, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(write_pairs(tmp_path / "pairs"), tmp_path / "run", *GUIDED, "train.steps=2")
    (tmp_path / "run.yaml").write_text((tmp_path / "run" / "config.yaml").read_text())
    arguments, told = COMMANDS[command]
    status, output, errors = call(*arguments)
    assert status == 0, errors
    lines = [line for line in output.splitlines() if line.startswith(f"{command}: for ")]
    assert lines, output
    assert any(told in line for line in lines), lines
