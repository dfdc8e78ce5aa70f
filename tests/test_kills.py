"""Thirty kills at random moments: how long the end takes, what is kept, and that going on leads to the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from depthjepa.config.run_config import to_mapping
from depthjepa.logbook import RunFolder
from tiny_images import write_pairs
from tiny_runs import GUIDED, metrics, run, start, tiny, weights

WITHIN = 10.0  # seconds from a signal to the end
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
FIT = ("data.image_size=64", "fit.batch_size=4", "fit.autoencoder_steps=60", "fit.steps=60", "fit.crops=24",
       "fit.checkpoint_every=10", "fit.val_images=4", "fit.threads=1")  # fmt: skip
# What each command is called with; `OUT` is the place that it writes, and what goes on with it follows after |.
COMMANDS = {
    "train": "train run.yaml train.steps=400 train.checkpoint_every=50 train.probe_every=100 --out OUT | --resume",
    "teach": "teach --data pairs --teacher depthfm-tiny guidance.teacher_size=64 --out OUT |",
    "fit-teacher": f"fit-teacher --data pairs {' '.join(FIT)} --out OUT |",
    "study": "study study.yaml --out OUT | --resume",
    "probe": "probe OUT depth evaluation.depth_readout=linear evaluation.depth_steps=400 |",
}
STUDY = {"arms": {"plain": [], "other": ["optim.lr=1e-3"]}, "seeds": 1, "probes": ["depth"], "base": "run.yaml",
         "settings": ["train.steps=150", "train.checkpoint_every=50"]}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, a study file, a run to probe, and what each command leaves when nobody kills it."""
    folder = tmp_path_factory.mktemp("kills")
    write_pairs(folder / "pairs", 48, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        content = to_mapping(tiny(Path("pairs"), *GUIDED, "evaluation.pictures=2"))
        (folder / "run.yaml").write_text(yaml.safe_dump(content))
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        run(Path("pairs"), folder / "trained", *GUIDED, "train.steps=2", "evaluation.pictures=2")
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Callable[[str], tuple[Path, float]]:
    """The folder of a command that nobody has killed, and the seconds that it took."""
    known: dict[str, tuple[Path, float]] = {}

    def of(command: str) -> tuple[Path, float]:
        if command not in known:
            out, begun = begin(place, command, "whole"), time.monotonic()
            process = start(*arguments(command, out), cwd=place)
            assert process.wait(timeout=600) == 0
            known[command] = out, time.monotonic() - begun
        return known[command]

    return of


def begin(place: Path, command: str, name: str) -> Path:
    out = place / f"{command} {name}"
    if command == "probe":
        shutil.copytree(place / "trained", out)
    return out


def arguments(command: str, out: Path, *, again: bool = False) -> list[str]:
    first, _, more = COMMANDS[command].partition("|")
    return [str(out) if word == "OUT" else word for word in (first + (more if again else "")).split()]


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_killed_goes_on_to_the_same_bits(
    command: str, number: signal.Signals, turn: int, place: Path, whole: Callable[[str], tuple[Path, float]]
) -> None:
    done, seconds = whole(command)
    out = begin(place, command, f"{number.name} {turn}")
    moment = float(np.random.default_rng([len(command), number, turn]).uniform(0.15, 0.9)) * seconds
    process = start(*arguments(command, out), cwd=place)
    time.sleep(moment)
    ended_before = process.poll() is not None
    process.send_signal(number)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=120)
    took = time.monotonic() - begun
    kept = said_of(command, out)
    print(f"{command}, {number.name} after {moment:.1f} of {seconds:.1f} s: ended in {took:.1f} s, kept {kept}")
    assert took < WITHIN
    if number != signal.SIGKILL and not ended_before and process.returncode != 0:
        assert process.returncode in (1, 128 + number, -number)  # negative: before Python had its handlers
        assert "Traceback" not in errors
    going_on = start(*arguments(command, out, again=out.exists()), cwd=place)
    _, errors = going_on.communicate(timeout=600)
    if "--resume: there is no" in errors:  # it was killed before there was anything to go on with
        going_on = start(*arguments(command, out), cwd=place)
        _, errors = going_on.communicate(timeout=600)
    assert going_on.returncode == 0, errors
    assert content(command, out) == content(command, done)


def said_of(command: str, out: Path) -> str:
    """What there is to go on with."""
    if command == "train" and (out / "checkpoints" / "last.pt").exists():
        return f"step {weights(out)['step']}"
    files = [file for file in out.rglob("*") if file.is_file()] if out.exists() else []
    return f"{len(files)} files" if files else "nothing"


def content(command: str, out: Path) -> Any:
    """What must be the same to the last bit, without what a clock says."""
    if command == "train":
        return fingerprint(weights(out)), metrics(out)
    if command == "teach":
        return {file.relative_to(out).as_posix(): digest(file) for file in [out / "cache.json", *out.rglob("*.bin")]}
    if command == "fit-teacher":
        return fingerprint(torch.load(out / "teacher.ckpt", weights_only=True)), RunFolder(out).summary()
    if command == "study":
        runs = sorted(file.parent for file in out.rglob("config.yaml"))
        return [
            (str(each.relative_to(out)), fingerprint(weights(each)), table(each / "probes" / "depth.json"))
            for each in runs
        ]
    return table(out / "probes" / "depth-linear.json")


def table(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return {key: value for key, value in found.items() if key != "probed"}


def fingerprint(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(key): fingerprint(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(each) for each in value]
    return value


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
