"""Runs small enough for tests: settings, runs in this and in other processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from depthjepa.config.reading import build_config
from depthjepa.config.recipe_files import families, recipe_names
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.logbook import RunFolder
from depthjepa.study.processes import probe_run
from depthjepa.training import train

Call = Callable[..., tuple[int, str, str]]  # the fixture `call`: arguments to exit status, output, errors

SETTINGS = (
    "data.image_size=48",
    "data.crop_scale=[0.5, 1.0]",
    "data.flip=true",
    "model.patch_size=8",
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "predictor.width=16",
    "predictor.depth=1",
    "train.batch_size=8",
    "train.log_every=1",
    "train.threads=1",
)
GUIDED = ("guidance.kind=feature", "guidance.weight=0.5")
CLOCK = ("images_per_second", "waiting_share", "seconds", "peak_memory_bytes")  # what differs from run to run


def recipes_by_choice() -> list[Any]:
    """Shipped recipes as parameters; of a family those that hold every choice once, and the others as slow ones."""
    slow = set()
    for family, members in families().items():
        choices = [each.split("|") for each in re.findall(r"{(.*?)}", family)]
        kept = {
            re.sub(r"{.*}", "-".join(choice[row % len(choice)] for choice in choices), family)
            for row in range(max(map(len, choices)))
        }
        assert kept <= set(members)
        slow |= set(members) - kept
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in recipe_names()]


def tiny(root: Path, *overrides: str) -> RunConfig:
    """A configuration of a tiny run on `root`."""
    supervised = "train.objective=supervised" in overrides
    settings = [text for text in SETTINGS if not (supervised and text.startswith("predictor."))]
    return build_config({"name": "tiny"}, [f"data.root={root}", *settings, *overrides])


def run(root: Path, out: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    """Train a tiny run in this process."""
    return train(tiny(root, *overrides), out, resume=resume, say=lambda _: None)


def weights(folder: Path, name: str = "last") -> dict[str, Any]:
    """Everything that a checkpoint holds."""
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
    return content


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Places where two nested contents are not bit by bit the same."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [fault for key in first for fault in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, (list, tuple)) and type(first) is type(second) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [fault for number, pair in pairs for fault in differences(*pair, f"{place}/{number}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [place]
    return [] if type(first) is type(second) and first == second else [place]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged steps without what the clock says."""
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in RunFolder(folder).metrics()]


def same_losses(first: Path, second: Path) -> None:
    """Refuse two runs of the same steps whose losses or norms of gradients differ by more than rounding does."""
    one, other = ([each for each in metrics(folder) if "loss" in each] for folder in (first, second))
    assert [record["step"] for record in one] == [record["step"] for record in other]
    for left, right in zip(one, other, strict=True):
        for key in ("loss", "loss_jepa", "loss_depth"):
            assert left[key] == pytest.approx(right[key], rel=1e-5, abs=1e-5)
        # AdamW hardly feels the scale of its gradients: their norm does.
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def recipe_file(path: Path, root: Path, *overrides: str) -> Path:
    """A YAML file of a tiny configuration, for the command line."""
    path.write_text(yaml.safe_dump(to_mapping(tiny(root, *overrides))))
    return path


def start(
    *arguments: str | Path,
    module: Sequence[str] = ("depthjepa",),
    told: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS` with one thread, outside of this process's settings but for those `told`."""
    return subprocess.Popen(
        [sys.executable, "-m", *module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(told or {})},
        **options,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port


def settings(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would tell a process."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, map(str, (rank, rank, world, "localhost", port)), strict=True))


def start_several(world: int, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Start the processes of one run, or a single one, without a launcher that would end them together."""
    if world == 1:
        return [start(*arguments)]
    port = free_port()
    return [start(*arguments, told=settings(rank, world, port)) for rank in range(world)]


def lines(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened for two minutes"
        time.sleep(0.005)


class Ended(SpawnProcess):
    """Stands for a process that ended well at once."""

    exitcode = 0
    sentinel = -1

    def __init__(self) -> None:
        self.sentinel, other = os.pipe()
        os.close(other)

    def __del__(self) -> None:
        os.close(self.sentinel)

    def terminate(self) -> None:
        """It has ended already."""

    def join(self, timeout: float | None = None) -> None:
        """It has ended already."""


def inside(content: dict[str, Any], place: Path, tasks: Sequence[str]) -> Ended:
    """Do a run in this process: a new one takes seconds for its imports."""
    config = build_config(content)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.log").open("a") as log:
        train(config, place, resume=True, say=lambda text: print(text, file=log))
    probe_run(config, place, tasks)
    return Ended()
