"""Ctrl-C and SIGTERM end any command: at once where nothing is lost, else after the step, to be gone on with."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from depthjepa import training
from depthjepa.data.reading import read
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import RunFolder
from depthjepa.model.vit import VisionTransformer
from depthjepa.run import beginning
from depthjepa.stopping import SIGNALS, Interrupted, interruptions
from tiny_images import write_classes, write_pairs
from tiny_runs import GUIDED, SETTINGS, Call, differences, metrics, run, start, weights

WITHIN = 10.0  # seconds


# the wish


@pytest.mark.parametrize("number", SIGNALS)
def test_a_wish_waits_until_it_is_asked_about(number: signal.Signals) -> None:
    with interruptions() as stopping:
        assert not stopping()
        signal.raise_signal(number)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_wish_is_granted_at_once_where_that_is_allowed() -> None:
    with interruptions() as stopping:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"), stopping.at_once():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        with pytest.raises(Interrupted), stopping.at_once():  # and so is one that came before
            pytest.fail("it went on")


def test_a_second_ctrl_c_is_granted_wherever_it_comes() -> None:
    with interruptions() as stopping:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # a scheduler may say it twice
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        assert stopping()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wish_that_a_finaliser_swallows_comes_again(number: signal.Signals) -> None:
    """Python ignores what a `__del__` raises, and a signal may well come inside one: h5py's groups have them."""

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(number)

    hook = sys.unraisablehook
    with interruptions() as stopping, pytest.raises(Interrupted), stopping.at_once():
        del_it = Finalised()
        del del_it
        begun = time.monotonic()  # the exception of the finaliser was ignored, or this line would not be reached
        while time.monotonic() < begun + WITHIN:
            time.sleep(0.01)
        pytest.fail("the wish was lost")
    assert sys.unraisablehook is hook


def test_work_that_can_be_gone_on_with_says_how() -> None:
    goes_on = "the same command goes on"
    stopped = pytest.raises(RunStopped, match=f"^stopped; {goes_on}$")
    with stopped, interruptions(goes_on) as stopping, stopping.at_once():
        signal.raise_signal(signal.SIGINT)


def test_no_handler_for_faults_takes_a_wish_for_one() -> None:
    with interruptions() as stopping, pytest.raises(Interrupted), stopping.at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("survived as a fault")


# workers


class Slow(Dataset[int | BadInput]):
    """Answers at once, but for one question that takes a minute."""

    def __getitem__(self, request: int) -> int:
        if request == 2:
            time.sleep(60)
        return os.getpid()


def alive(process: int) -> bool:
    """Whether a process is there and has not ended; one that nobody asks about may stay as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_what_reads_from_them_also_in_the_middle_of_an_answer() -> None:
    answers = read(Slow(), iter(range(4)), 2)
    workers = {next(answers), next(answers)}
    assert all(map(alive, workers)) and os.getpid() not in workers
    begun = time.monotonic()
    answers.close()
    assert time.monotonic() - begun < 5 and not any(map(alive, workers))


# training


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs")


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_draws_a_batch_goes_on_to_the_same_end(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*GUIDED, "train.steps=6", "train.checkpoint_every=1000")
    run(pairs, tmp_path / "whole", *settings)
    drawn = training.TrainingBatches.__iter__

    def stopped_in_the_fourth(batches: Any) -> Iterator[Any]:
        for number, batch in enumerate(drawn(batches)):
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("the batch was waited for")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingBatches, "__iter__", stopped_in_the_fourth)
        # The first batches are those that the teacher is fitted to.
        patch.setattr(beginning, "target_batches", lambda state, source: drawn(of_target(state, source)))
        with pytest.raises(RunStopped, match="stopped at step 3 of 6; continue with --resume"):
            run(pairs, tmp_path / "cut", *settings)
    assert weights(tmp_path / "cut")["step"] == 3
    run(pairs, tmp_path / "cut", *settings, resume=True)
    assert differences(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def of_target(state: Any, source: Any) -> Any:
    size = min(state.config.train.batch_size, 64)
    return training.TrainingBatches(
        source=source, data=state.config.data, masks=None, grid=state.config.grid, seed=state.config.seed,
        batch_size=size, steps=max(1, min(state.config.train.whitening_images, len(source)) // size),
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_probe_probes_again_and_goes_on_to_the_same_end(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*GUIDED, "train.steps=6", "train.probe_every=2", "train.checkpoint_every=1000")
    run(pairs, tmp_path / "whole", *settings)
    probed = training.probe_during_training

    def stopped_in_the_second(encoder: Any, *given: Any) -> Any:
        if RunFolder(tmp_path / "cut").metrics()[-1]["step"] == 4:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the probe was waited for")
        return probed(encoder, *given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "probe_during_training", stopped_in_the_second)
        with pytest.raises(RunStopped, match="stopped; continue with --resume"):
            run(pairs, tmp_path / "cut", *settings)
    assert weights(tmp_path / "cut")["step"] == 4
    assert [record["step"] for record in RunFolder(tmp_path / "cut").metrics()] == [1, 2, 2, 3, 4]
    run(pairs, tmp_path / "cut", *settings, resume=True)
    assert differences(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    best = (weights(folder, "best")["step"] for folder in (tmp_path / "whole", tmp_path / "cut"))
    assert len(set(best)) == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_in_its_pictures_draws_them_when_it_goes_on(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training, "finish", stopped)
        with pytest.raises(RunStopped, match="stopped; continue with --resume"):
            run(pairs, tmp_path / "run", "train.steps=2")
    assert not RunFolder(tmp_path / "run").finished
    assert run(pairs, tmp_path / "run", "train.steps=2", resume=True)["finished"]


# all commands


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_has_nothing_to_keep_ends_with_one_line(
    number: signal.Signals, status: int, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(write_pairs(tmp_path / "pairs"), tmp_path / "run", "train.steps=1")
    monkeypatch.setattr(VisionTransformer, "forward", lambda *_: signal.raise_signal(number))
    found, _, errors = call("probe", tmp_path / "run", "depth", "--out", tmp_path / "table.json")
    assert (found, errors) == (status, f"depthjepa: stopped by {number.name}\n")
    assert not (tmp_path / "table.json").exists()


TINY = tuple(setting for setting in SETTINGS if not setting.startswith("train.batch_size"))
SLOW = {
    # A batch of many images, drawn by the process itself and by workers.
    "train, drawing": ("train", "photos", "data.root=many", *TINY, "train.steps=2", "train.epochs=null",
                       "train.batch_size=40000", "data.memory_gib=0"),
    "train, workers": ("train", "photos", "data.root=many", *TINY, "train.steps=2", "train.epochs=null",
                       "train.batch_size=40000", "data.memory_gib=0", "data.workers=2"),
    "train, probe": ("train", "photos", "data.root=many", *TINY, "train.steps=100", "train.epochs=null",
                     "train.batch_size=8", "train.probe_every=1", "evaluation.batch_size=1"),
    "probe": ("probe", "run", "depth", "evaluation.depth_readout=dpt", "evaluation.depth_steps=100000"),
    "diagnose": ("diagnose", "run", "--gates", "evaluation.gate_steps=100000"),
    "teach": ("teach", "--data", "many", "--teacher", "depthfm-tiny", "evaluation.batch_size=512"),
    "fit-teacher": ("fit-teacher", "--data", "pairs", "data.image_size=64", "fit.batch_size=8"),
    "embed": ("embed", "run", "many", "data.image_size=480"),
    "study": ("study", "study.yaml"),
    "bench": ("bench", "train.batch_size=512"),
}  # fmt: skip
WRITES = [name for name in SLOW if name not in ("probe", "diagnose", "bench")]
STUDY = """
base: photos
settings: [data.root=pairs, train.steps=100000, train.epochs=null, {settings}]
arms: {{plain: [], other: [optim.lr=1e-4]}}
seeds: 2
probes: [depth]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    write_pairs(folder / "pairs")
    write_classes(folder / "many", 400)
    run(folder / "pairs", folder / "run", *GUIDED, "train.steps=2")
    (folder / "study.yaml").write_text(STUDY.format(settings=", ".join(f'"{text}"' for text in (*TINY, *GUIDED))))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", SLOW)
def test_any_command_ends_within_seconds(command: str, number: signal.Signals, place: Path) -> None:
    """Alone, as by `kill`: what a terminal or a scheduler says to all of a session, its workers hear as well."""
    made = place / f"{command} {number.name}"
    out = {"embed": ("--out", f"{made}.npz")}.get(command, ("--out", made) if command in WRITES else ())
    process = start(*SLOW[command], *out, cwd=place, start_new_session=True)
    time.sleep(float(np.random.default_rng(len(command)).uniform(12, 16)))  # well into the work, after the imports
    assert process.poll() is None, process.communicate()
    before = children(process.pid)
    process.send_signal(number)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=60)
    took = time.monotonic() - begun
    assert took < WITHIN, f"{took:.1f} s"
    assert process.returncode in (1, 128 + number)
    assert errors.startswith("depthjepa: stopped") and errors.count("\n") == 1
    time.sleep(1)
    assert not [child for child in before if alive(child)]


def children(process: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            if int(file.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(file.parent.name))
    return found
