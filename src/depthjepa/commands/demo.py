"""The whole way in minutes: twins with and without depth guidance, a supervised run, probes of all, a report.

The twins start from the same weights and see the same images, crops and masks in the same order; they differ in
the depth loss alone. What guides is the compact depth network that comes with the package: it was fitted on other
scenes, is asked once about every image, and neither it nor the twins see any depth. The supervised run is the same
encoder trained end to end on depth and labels in as many steps. Two runs go side by side.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from depthjepa import locks, progress
from depthjepa.commands.teach import teach
from depthjepa.config.effects import refuse_idle
from depthjepa.config.reading import given, load_config
from depthjepa.config.run_config import RunConfig, differences, to_mapping
from depthjepa.data.loading import open_source
from depthjepa.evaluation.probes import depth, diagnose, linear
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.build import asked_directly, asks_network
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.logbook import RunFolder, to_json, write_whole
from depthjepa.report.page import write_report
from depthjepa.stopping import interruptions
from depthjepa.study.plan import with_threads
from depthjepa.study.processes import Job, side_by_side
from depthjepa.study.results import is_done

TEACHER = ("guidance.teacher=depthfm-tiny", "guidance.teacher_size=96", "guidance.teacher_steps=1")
RUNS: dict[str, tuple[str, ...]] = {
    "guided": TEACHER,
    "unguided": ("guidance.kind=none",),
    "supervised": ("guidance.kind=none", "train.objective=supervised"),
}
TOGETHER = 2  # runs at a time
OWN = ("latents", "report.html", "demo.json")  # beside the folders and logs of the runs
TASKS = (depth.TASK.name, linear.TASK.name, diagnose.TASK.name)
FIGURES = {depth.TASK.name: ("r2_within", "aligned_absrel"), linear.TASK.name: ("val_accuracy",)}


def demo(out: Path, seed: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train the three runs below `out`, probe each, write `report.html` and `demo.json`; return the figures.

    Runs that are finished already are kept; one that was cut off goes on.
    """
    begin, latents = time.perf_counter(), out / "latents"
    for key, instead in (("seed", "--seed"), ("name", "none: its runs have names of their own")):
        if any(text.partition("=")[0] == key for text in overrides):
            raise BadInput(f"{key} of the demo is given by {instead}, not by a setting")
    configs = {name: load_config("demo", *layers(name, overrides), [f"name={name}", f"seed={seed}"]) for name in RUNS}
    refuse_idle(given(overrides, configs["guided"]), *configs.values())
    with locks.locked(out, say=print):
        RunFolder(out).refuse_other((*RUNS, *(f"{name}.log" for name in RUNS), *OWN))
        refuse_lacking(configs["guided"])
        guided = configs["guided"]
        ask = asks_network(guided.guidance) and guided.guidance == asked_directly(guided.guidance, control=True)
        if ask:
            assert isinstance(guided.guidance, FeatureGuidance)
            configs["guided"] = replace(guided, guidance=replace(guided.guidance, cache=str(latents)))
        for name, config in configs.items():
            folder = RunFolder(out / name)
            if folder.started and (changed := differences(folder.config(), to_mapping(config))):
                raise BadInput(f"{out} holds a demo with other values of {', '.join(changed)}: choose another --out")
        if ask:
            print("asking the teacher about every image, once")
            teach(configs["guided"], latents)
        run_all(configs, out)
        report = out / "report.html"
        with Console(stderr=True).status("writing the report"):
            write_report([out / name for name in configs], report)
        figures = summary(out, configs) | {"seed": seed, "seconds": time.perf_counter() - begin}
        write_whole(out / "demo.json", to_json(figures))
    print_summary(figures)
    print(f"report: {report}")
    return figures


def run_all(configs: Mapping[str, RunConfig], out: Path) -> None:
    """Train and probe what is not done yet, some runs at a time."""
    left = [
        Job(name, with_threads(config, TOGETHER), out / name)
        for name, config in configs.items()
        if not is_done(out / name, TASKS)
    ]
    done = len(configs) - len(left)
    with interruptions() as stopping, progress.task("training and probing", len(configs), done) as shown:
        ends = side_by_side(left, TOGETHER, TASKS, stopping, print, shown)
        with contextlib.closing(ends):
            for _, fault in ends:
                if fault is not None:
                    raise fault
        if stopping():
            raise RunStopped(f"stopped; what is in {out} is kept, and the same command goes on")


def refuse_lacking(config: RunConfig) -> None:
    """Refuse data without the depth and the labels that the demo's probes need, before the teacher is asked."""
    train, val = (open_source(config.data, split) for split in ("train", "val"))
    for task in (depth.TASK, linear.TASK):
        for need in task.needs:
            if lacking := need.lacking(task.name, config, train, val):
                raise BadInput(lacking)


def layers(name: str, overrides: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What lies over the recipe: what is asked for changes the guided run, and makes no other run a guided one."""
    return (RUNS[name], overrides) if name == "guided" else (overrides, RUNS[name])


def summary(out: Path, configs: dict[str, RunConfig]) -> dict[str, Any]:
    """Figures of every row, baselines first, from the tables on disk."""
    rows: dict[str, dict[str, float]] = {}
    for name in configs:
        for task, keys in FIGURES.items():
            table = RunFolder(out / name).probe(task)
            for row in table["rows"]:
                rows.setdefault(row["name"], {}).update({key: row[key] for key in keys})
    baselines = [name for name in rows if name not in configs]
    return {"rows": {name: rows[name] for name in [*baselines, *configs]}}


def print_summary(figures: dict[str, Any]) -> None:
    """Print the table that the demo is about."""
    columns = {
        "r2_within": ("depth R2 within", 3),
        "aligned_absrel": ("AbsRel, aligned", 3),
        "val_accuracy": ("linear accuracy [%]", 1),
    }
    print("\n" + " " * 18 + "".join(f"{label:>22}" for label, _ in columns.values()))
    for name, row in figures["rows"].items():
        told = ("" if row.get(key) is None else f"{row[key]:.{digits}f}" for key, (_, digits) in columns.items())
        print(f"{name:18}" + "".join(f"{each:>22}" for each in told))
    print(f"{figures['seconds']:.0f} s")
