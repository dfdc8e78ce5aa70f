"""How a run comes to its first step, or to the step that it goes on from: networks, teacher, memory, target.

All that can be refused is refused here, before anything is written; what is said of a run is said once nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from depthjepa import cost, distributed, optim, progress, runtime
from depthjepa.checkpoints.saving import Saving
from depthjepa.config.run_config import RunConfig
from depthjepa.data.account import what_is_read
from depthjepa.data.images import Split
from depthjepa.data.loading import TrainingBatches
from depthjepa.data.metres import describe_depth
from depthjepa.data.order import steps_per_epoch, wrap_note
from depthjepa.data.samples import Batch, Source
from depthjepa.guidance.build import learned_depths, refuse_images_without_latents, seen_by_teacher
from depthjepa.guidance.target import Teacher
from depthjepa.logbook import RunFolder
from depthjepa.method import build_method, build_target, build_teacher, compile_blocks, shard_blocks
from depthjepa.model.supervised import Supervised
from depthjepa.run import memory
from depthjepa.run.checks import parts_note, refuse_impossible
from depthjepa.run.state import State, freeze_or_thaw, restore
from depthjepa.warm_start import start_from

Say = Callable[[str], None]


def begin(
    config: RunConfig,
    folder: RunFolder,
    data: Mapping[Split, Source],
    ranks: distributed.Ranks,
    *,
    resume: bool,
    say: Say,
) -> State:
    """The state of step 0, or the one that the newest checkpoint of the folder holds.

    Raises `BadInput` for a configuration that the data, the teacher, the checkpoint or this machine's memory do not
    allow.
    """
    source, device = data["train"], runtime.device(config.train.device, ranks)
    refuse_impossible(config, data, ranks)
    epoch_steps = steps_per_epoch(len(source), config.train.batch_size)
    steps = config.train.total_steps(epoch_steps)
    teacher, lines = _teacher(config, source, device)
    method = build_method(config, teacher, len(source.classes))
    newest = distributed.of_first(folder.checkpoint() if resume else None, ranks)
    if config.about.choices and not resume:
        lines.insert(0, f"the recipe's choices: {config.about.choices}")
    if config.init.checkpoint is not None and newest is None:
        lines.insert(0, start_from(method, config))
    method = method.to(device)
    need = memory.memory_need(config, method, teacher, source, ranks, device)
    taken = memory.refuse_too_large(config, need, ranks, device)
    if sharded := ranks.world > 1 and config.train.parallel == "sharded":
        shard_blocks(method, ranks, device)
    state = State(
        config=config,
        method=method,
        parallel=method,
        optimizer=optim.build_optimizer(method, config.optim),
        target=None if teacher is None else build_target(config, method, teacher),
        classes=source.classes,
        step=0,
        steps=steps,
        epoch_steps=epoch_steps,
        device=device,
        ranks=ranks,
        saving=Saving(folder, ranks, config.train.timeout_minutes, in_parts=sharded),
        skipped={},
    )
    if ranks.first:
        state.read = what_is_read(config.data, data)
        lines.append(state.read)
    if newest is not None:
        restore(state, newest)
    for line in (*lines, cost.estimate(config, teacher, steps - state.step, ranks.world, device, taken)):
        say(line)
    _fit_target(state, source, fitted=newest is not None, say=say)
    if config.train.compile:
        compile_blocks(method)
    for note in (parts_note(config, ranks.world), wrap_note(len(source), config.train.batch_size)):
        if note:
            say(note)
    if state.step:
        say(f"resumed at step {state.step} of {steps}")
    freeze_or_thaw(state)
    return state


def _teacher(config: RunConfig, source: Source, device: torch.device) -> tuple[Teacher | None, list[str]]:
    """The teacher of a guided or supervised run, and what is to be said of it and of the depth that it reads."""
    teacher = build_teacher(config, has_depth=source.has_depth)
    refuse_images_without_latents(config.guidance, source)
    lines = [note for note in (seen_by_teacher(config.guidance, source.name),) if note]
    if teacher is None:
        return None, lines
    if teacher.describe().needs_depth:
        lines += describe_depth(source, *learned_depths(config.guidance))
    return teacher.to(device), lines


def _fit_target(state: State, source: Source, *, fitted: bool, say: Say) -> None:
    """Whitening and floor of what guides, by training crops; where a checkpoint had them they are there already."""
    target = state.target
    if target is not None and not fitted:
        with progress.task(f"what the teacher says of {state.config.train.whitening_images} crops"):
            target.fit(target_batches(state, source))
        if not target.floor:
            say("the teacher says the same of every image: there is nothing to learn from it")
    if isinstance(state.method, Supervised) and target is not None and target.floor:
        state.method.floor = target.floor


def target_batches(state: State, source: Source) -> Iterator[Batch]:
    """Crops drawn like training's, the same on every rank, to which the target is fitted."""
    config = state.config
    size = min(config.train.batch_size, 64)
    batches = TrainingBatches(
        source=source,
        data=config.data,
        masks=None,
        grid=config.grid,
        seed=config.seed,
        batch_size=size,
        ranks=distributed.Ranks(),
        steps=max(1, min(config.train.whitening_images, len(source)) // size),
    )
    return (batch.to(state.device) for batch in batches)
