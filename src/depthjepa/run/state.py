"""What a run consists of between two steps, to and from its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depthjepa import distributed, optim
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.checkpoints.saving import Saving
from depthjepa.config.run_config import RunConfig
from depthjepa.data.layouts.layout import base_of
from depthjepa.data.order import weighted_roots
from depthjepa.formats.weights import assemble, load_strictly
from depthjepa.guidance.target import Target
from depthjepa.method import build_method
from depthjepa.model.jepa import JEPA
from depthjepa.model.supervised import Supervised
from depthjepa.model.vit import VisionTransformer


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
    device: torch.device
    ranks: distributed.Ranks
    saving: Saving
    skipped: dict[str, None]  # names of unreadable images, in the order they came
    read: str = ""  # which data, in words; of the first process


def freeze_or_thaw(state: State) -> None:
    """Let everything learn, or the head alone while the run is in its frozen steps; called where that changes."""
    frozen = state.step < state.config.init.frozen_steps
    for part in (state.method.context_encoder, getattr(state.method, "predictor", None)):
        if part is not None:
            part.requires_grad_(not frozen)
    state.parallel = distributed.wrap(state.method, state.ranks, state.device)


def restore(state: State, path: Path) -> None:
    """Take step, weights, optimiser and teacher statistics from a checkpoint of the run, the same in all processes."""
    held = state.method.state_dict()
    saved = load_checkpoint(path, moments=True, held=held)
    model = {name: distributed.like(value, held.get(name, value)) for name, value in saved.model.items()}
    load_strictly(state.method, model, saved.path)
    state.optimizer.load_state_dict(_moments(saved.optimizer, held))
    state.step = saved.step
    state.skipped = dict.fromkeys(moved(saved.skipped, saved.config.data.root, state.config.data.root))
    if state.target is not None and saved.whitening is not None:
        state.target.whitening, state.target.floor = saved.whitening.to(state.device), saved.floor


def _moments(optimizer: dict[str, Any], held: dict[str, Tensor]) -> dict[str, Any]:
    """An optimiser's state with moments that are held as their parameters are."""
    names = optim.names_by_number(optimizer)
    state = {
        number: {
            moment: distributed.like(value, held[names[number]]) if value.shape == held[names[number]].shape else value
            for moment, value in moments.items()
        }
        for number, moments in optimizer["state"].items()
    }
    return {**optimizer, "state": state}


def whole_encoder(state: State) -> VisionTransformer:
    """The encoder that is evaluated, which one process computes alone; all processes ask."""
    if not distributed.is_sharded(state.method):
        return state.method.encoder
    weights = {name: distributed.whole(value) for name, value in state.method.encoder.state_dict().items()}
    return assemble(state.config.model, state.config.grid, weights, "the run")


def whole_method(state: State) -> JEPA | Supervised:
    """The networks, which one process computes alone; all processes ask."""
    if not distributed.is_sharded(state.method):
        return state.method
    weights = {name: distributed.whole(value) for name, value in state.method.state_dict().items()}
    teacher = None if state.target is None else state.target.teacher
    method = build_method(state.config, teacher, len(state.classes)).to(state.device)
    load_strictly(method, weights, "the run")
    if isinstance(method, Supervised) and isinstance(state.method, Supervised):
        method.floor = state.method.floor
    return method


def moved(faults: Sequence[str], before: str, now: str) -> list[str]:
    """What was said of unreadable images, with the roots where the data lie now: an image counts once."""
    roots = [
        tuple(base_of(root) for root, _ in pair)
        for pair in zip(weighted_roots(before), weighted_roots(now), strict=True)
    ]
    said = []
    for fault in faults:
        old, new = next((pair for pair in roots if fault.startswith(f"{pair[0]}/")), ("", ""))
        said.append(f"{new}{fault.removeprefix(str(old))}")
    return said


def save(state: State, name: str) -> None:
    """Write the checkpoint `name` of the run, or begin to: `state.saving.settle()` waits until it is there."""
    content = checkpoint.content(
        step=state.step,
        epoch=state.step / state.epoch_steps,
        config=state.config,
        classes=state.classes,
        model=state.method.state_dict(),
        optimizer=state.optimizer.state_dict(),
        whitening=None if state.target is None else state.target.whitening,
        floor=None if state.target is None else state.target.floor,
        skipped=tuple(state.skipped),
    )
    state.saving.save(name, state.step, content)
