"""What a run consists of between two steps, to and from its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from depthjepa import checkpoint, distributed
from depthjepa.config import RunConfig
from depthjepa.data.layouts.layout import path_of
from depthjepa.data.order import weighted_roots
from depthjepa.formats.weights import load_strictly
from depthjepa.guidance.target import Target
from depthjepa.model.jepa import JEPA
from depthjepa.model.supervised import Supervised


@dataclass
class State:
    """What a run consists of between two steps."""

    config: RunConfig
    method: JEPA | Supervised
    parallel: nn.Module  # the method, wrapped for several processes
    optimizer: torch.optim.AdamW
    target: Target | None  # what the teacher says, whitened
    classes: tuple[str, ...]
    step: int
    steps: int
    epoch_steps: int
    where: torch.device
    place: distributed.Ranks
    skipped: dict[str, None]  # names of unreadable images, in the order they came
    read: str = ""  # which data, in words; of the first process


def restore(state: State, folder: Path) -> None:
    """Take step, weights, optimiser and teacher statistics from the newest checkpoint of a run folder."""
    saved = checkpoint.load(folder)
    load_strictly(state.method, saved.model, saved.path)
    state.optimizer.load_state_dict(saved.optimizer)
    state.step = saved.step
    state.skipped = dict.fromkeys(moved(saved.skipped, saved.config.data.root, state.config.data.root))
    if state.target is not None and saved.whitening is not None:
        state.target.whitening, state.target.floor = saved.whitening.to(state.where), saved.floor


def moved(faults: Sequence[str], before: str, now: str) -> list[str]:
    """What was said of unreadable images, with the roots where the data lie now: an image counts once."""
    roots = [
        tuple(path_of(root).parent if root.endswith(".tar") else path_of(root) for root, _ in pair)
        for pair in zip(weighted_roots(before), weighted_roots(now), strict=True)
    ]
    said = []
    for fault in faults:
        old, new = next((pair for pair in roots if fault.startswith(f"{pair[0]}/")), ("", ""))
        said.append(f"{new}{fault.removeprefix(str(old))}")
    return said


def save(state: State, folder: Path, name: str) -> None:
    """Write the checkpoint `name` of a run folder: all processes put it together, the first one writes."""
    model, optimizer = distributed.whole_state(state.method, state.optimizer)

    def write() -> None:
        checkpoint.save(
            folder,
            name,
            step=state.step,
            epoch=state.step / state.epoch_steps,
            config=state.config,
            classes=state.classes,
            model=model,
            optimizer=optimizer,
            whitening=None if state.target is None else state.target.whitening,
            floor=None if state.target is None else state.target.floor,
            skipped=tuple(state.skipped),
        )

    distributed.first_writes(state.place, write)
