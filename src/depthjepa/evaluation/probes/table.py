"""The table of tasks: one row for each, in the order in which reports show them.

A new task is a file beside this one that ends in its row, and its name here. Commands, studies and reports read their
choices, columns, sections and refusals from the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from depthjepa.config.run_config import RunConfig
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes import (
    attentive,
    correspond,
    decode,
    depth,
    diagnose,
    gates,
    guidance,
    knn,
    linear,
    mlp,
    normals,
    segment,
)
from depthjepa.evaluation.probes.task import Command, OwnTask, SharedTask, Task
from depthjepa.faults import BadInput, nearest

TASKS: tuple[Task, ...] = (
    depth.TASK,
    normals.TASK,
    correspond.TASK,
    decode.TASK,
    segment.TASK,
    knn.TASK,
    linear.TASK,
    mlp.TASK,
    attentive.TASK,
    diagnose.TASK,
    gates.TASK,
    guidance.TASK,
    guidance.LAYERS,
    guidance.ALIGNMENT,
)
Runnable = SharedTask | OwnTask
Row = TypeVar("Row", bound=Task)


def tasks() -> dict[str, Task]:
    """All kinds of tables, by name."""
    return {task.name: task for task in TASKS}


def of_command(command: Command) -> dict[str, Runnable]:
    """What a command runs, by name."""
    return {task.name: task for task in TASKS if isinstance(task, Runnable) and task.command == command}


def studied() -> dict[str, Runnable]:
    """What studies may ask for, by name."""
    return {task.name: task for task in TASKS if isinstance(task, Runnable) and task.studied}


def pictured() -> dict[str, Task]:
    """What `depthjepa show` can draw, by name."""
    return {task.name: task for task in TASKS if task.picture is not None}


def baselines() -> tuple[str, ...]:
    """Names of rows that no run trained: what needs no encoder, then the random one."""
    guesses = dict.fromkeys(guess for task in TASKS for guess in task.guesses)
    return (*guesses, RANDOM)


def fault_of(name: str, among: Collection[str]) -> str | None:
    """Why a name cannot be that of a probe, with the nearest valid choice; None where it can."""
    if name in among:
        return None
    return f"there is no probe {name!r}{nearest(name, among)}: choose from {', '.join(among)}"


def chosen(name: str, among: Mapping[str, Row]) -> Row:
    """The row with this name; raises `BadInput` with the nearest valid choice."""
    if (fault := fault_of(name, among)) is not None:
        raise BadInput(fault)
    return among[name]


def refuse_unread(command: str, run: Collection[Task], config: RunConfig, given: Iterable[str]) -> None:
    """Raise `BadInput` for settings `evaluation.*` that none of the tasks which a command runs reads, but others do."""
    faults = []
    for key in given:
        name = key.removeprefix("evaluation.")
        readers = [task.name for task in TASKS if name in task.reads]
        variants = {
            task.name: task.variant for task in TASKS if task.variant is not None and name in task.variant.reads
        }
        read = any(
            task.name in readers or (task.name in variants and variants[task.name].asked(config)) for task in run
        )
        if (readers or variants) and not read:
            named = [*readers, *(f"{task} with {variant.setting}" for task, variant in variants.items())]
            faults.append(f"{key} has no effect on {command}: the probe that reads it is {' or '.join(named)}")
    if faults:
        raise BadInput("; ".join(faults))
