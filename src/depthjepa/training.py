"""Training: one visible loop. Everything that changes weights stands here in reading order.

Batches, masks and rates are functions of the step, so a resumed run is the very same run: there is nothing to
replay. A run tells its loggers how it goes, writes its checkpoints, and stops before it corrupts anything.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depthjepa import distributed, locks, optim, progress, runtime
from depthjepa.config.reading import load_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.contents import Contents, write_contents
from depthjepa.data.loading import TrainingBatches, open_splits
from depthjepa.data.samples import Batch, Source
from depthjepa.evaluation.during_training import probe_during_training
from depthjepa.evaluation.pictures import drawn
from depthjepa.faults import BadInput, OutOfReach, RunStopped
from depthjepa.logbook import RunFolder
from depthjepa.loggers.logger import Logger, open_loggers
from depthjepa.model.vit import normalise
from depthjepa.run.beginning import begin
from depthjepa.run.checks import (
    contents_of_run,
    is_moved,
    open_data,
    rates_change,
    refuse_mix_up,
    settle_precision,
    steps_before,
)
from depthjepa.run.state import State, freeze_or_thaw, save, whole_encoder, whole_method
from depthjepa.run.summary import finish, so_far
from depthjepa.stopping import Interrupted, Stopping, interruptions

UNREADABLE_SHARE = 0.01  # more than this share of unreadable images stops a run


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    lengthen: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a configuration (`load_config`) and return its summary; `out` becomes a run folder.

    The summary is that of `summary.json`: `steps`, the last losses (`loss`, `loss_jepa`, …), `images_per_second`,
    `seconds`, `peak_memory_bytes`, …; it is empty in all processes but the first. `resume` continues the run that is
    there, exactly; with `lengthen` it may be asked to be longer, and its rates go on as those of the longer run. `say`
    gets the lines before the first step (None: they are printed).

    Raises `BadInput` before anything is written, also where another process is at work in `out`, and later for data of
    which too much cannot be read; `RunStopped` when the run cannot go on. The last checkpoint is whole then.
    """
    folder = RunFolder(out)
    ranks = distributed.ranks()
    device = runtime.device(config.train.device, ranks)
    if resume and folder.finished and not lengthen:
        refuse_mix_up(settle_precision(config, folder, device, ranks), folder, resume=True)
        if is_moved(config, folder):  # the same data elsewhere, or others
            contents_of_run(config, open_splits(config.data), folder, lambda _: None)
        return folder.summary() if ranks.first else {}  # finished already
    say = say or (lambda text: print(text, flush=True))
    runtime.settle_cpu(config.train.threads)
    with (
        distributed.process_group(ranks, device, config.train.timeout_minutes),
        locks.locked(folder.path, ranks, say=say),
    ):
        config = settle_precision(config, folder, device, ranks)
        refuse_mix_up(config, folder, resume=resume, lengthen=lengthen)
        data = open_data(config, folder)
        contents: dict[str, Contents] = {}
        first = partial(contents_of_run, config, data, folder, say)
        distributed.first_writes(ranks, lambda: contents.update(first()))
        say_once = say if ranks.first else lambda _: None
        state = begin(config, folder, data, ranks, resume=resume, say=say_once)
        if lengthen:
            before = steps_before(config, folder, state.epoch_steps)
            if before < state.steps:
                say_once(rates_change(config, state.step, before, state.steps, state.epoch_steps))
            if ranks.first:  # a run that had been finished is not
                folder.write_summary(so_far(state, folder, len(data["train"])))
        distributed.first_writes(ranks, lambda: write_contents(folder.path, contents))
        source = data["train"]
        batches = training_batches(state, source)
        with state.saving, open_loggers(config.train.loggers, folder.path, ranks) as loggers:
            for logger in loggers:
                logger.begin(to_mapping(config), runtime.environment(), state.step)
            with interruptions("continue with --resume") as stopping:
                loop(state, folder, loggers, batches, stopping)
                state.method = whole_method(state)  # what follows one process computes alone
                with stopping.at_once(), progress.task(f"{config.name}: pictures"):
                    summary = finish(state, folder, len(source)) if ranks.first else {}
            pictures = drawn(folder) if len(loggers) > 1 else {}
            for logger in reversed(loggers):  # the run folder last, which says that the run is finished
                for name, figure in pictures.items():
                    logger.picture(name, figure, state.step)
                logger.finish(summary)
        return summary


def training_batches(state: State, source: Source) -> TrainingBatches:
    """The batches of this process from the state's step to the end; raises `BadInput` where they cannot be made."""
    config = state.config
    return TrainingBatches(
        source=source,
        data=config.data,
        masks=config.masks if config.train.objective == "jepa" else None,
        grid=config.grid,
        seed=config.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        ranks=state.ranks,
        start_step=state.step,
        steps=state.steps,
    )


def loop(
    state: State, folder: RunFolder, loggers: tuple[Logger, ...], to_come: TrainingBatches, stopping: Stopping
) -> None:
    """Step until the end, logging and saving on the way."""
    train_config, batches, length = state.config.train, iter(to_come), len(to_come.source)
    before = folder.metrics()
    unprobed = state.step > 0 and not any("probe_score" in each and each["step"] == state.step for each in before)
    if probe_is_due(state) and distributed.of_first(unprobed, state.ranks):
        probe(state, folder, loggers, stopping)  # the run was stopped after the step that asked for it
    since, images, waited = time.perf_counter(), 0, 0.0
    # Of all sessions of a run, as far as their steps are kept.
    start = since - max((record.get("seconds", 0.0) for record in before), default=0.0)
    with progress.task(state.config.name, state.steps, state.step) as shown:
        while state.step < state.steps:
            asked = time.perf_counter()
            parts, lost = draw(batches, train_config.accumulate, stopping)
            waited += time.perf_counter() - asked
            skipped = [name for part in parts for name in part.skipped]
            # All processes stop before the same step: one that was stopped while it drew its batch has none.
            wish = stopping() or lost is not None
            stop, unreadable = distributed.any_process((wish, bool(skipped)), state.ranks, state.device)
            if unreadable:
                count_unreadable(state, folder, skipped, length)
            if stop:
                keep(state, folder, length)
                state.saving.settle()
                why = "" if lost is None else f"{lost}; "
                raise RunStopped(
                    f"{why}stopped at step {state.step} of {state.steps}; continue with --resume"
                ) from lost

            try:
                figures = train_step(state, parts)
            except RunStopped as fault:
                state.saving.settle()
                raise RunStopped(f"{fault} ({folder.kept})") from fault
            state.step += 1
            if state.step == state.config.init.frozen_steps:
                freeze_or_thaw(state)
            images += train_config.batch_size

            if state.step % train_config.log_every == 0 or state.step == state.steps:
                now = time.perf_counter()
                figures["images_per_second"] = images / (now - since)
                figures["waiting_share"] = waited / (now - since)
                figures["seconds"] = now - start
                figures["peak_memory_bytes"] = runtime.peak_memory_bytes(state.device)
                log(state, loggers, figures)
                since, images, waited = now, 0, 0.0
                # Of a step that is logged: the others leave their loss on the device.
                shown.figures = f"loss {float(figures['loss']):.3f}, {figures['images_per_second']:.0f} images/s"
            shown.done = state.step
            due = state.step % train_config.checkpoint_every == 0 or state.step == state.steps
            if due or probe_is_due(state):
                keep(state, folder, length)
            if probe_is_due(state):
                probe(state, folder, loggers, stopping)
    state.saving.settle()


def draw(batches: Iterator[Batch], parts: int, stopping: Stopping) -> tuple[list[Batch], OutOfReach | None]:
    """The parts of the next step's batch; none where somebody wishes to stop, which is not waited for.

    None either where what they are read from does not answer any more: then that comes with them.
    """
    try:
        with stopping.at_once():
            return [next(batches) for _ in range(parts)], None
    except Interrupted:
        return [], None
    except OutOfReach as fault:
        return [], fault


def keep(state: State, folder: RunFolder, images: int) -> None:
    """Write the newest checkpoint, and what the run says of itself so far."""
    save(state, "last")
    if state.ranks.first:
        folder.write_summary(so_far(state, folder, images))


def train_step(state: State, parts: list[Batch]) -> dict[str, Any]:
    """One update: losses and gradients of all parts, the optimiser's step, then the moving average."""
    config, step = state.config, state.step
    rates = optim.rates(
        config.optim,
        step,
        steps=state.steps,
        epoch_steps=state.epoch_steps,
        batch_size=config.train.batch_size,
        thaw=(config.init.frozen_steps, config.init.thaw_steps),
    )
    optim.set_rates(
        state.optimizer,
        lr=rates["lr"],
        head_scale=rates["head_scale"],
        decay=rates["weight_decay"],
        thaw_scale=rates["thaw_scale"],
    )
    state.optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        batch = part.to(state.device)
        images = normalise(batch.images, state.method.encoder.mean, state.method.encoder.deviation)
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else distributed.adding_up(state.parallel):
            with runtime.precision(config.train.precision, state.device):
                target = None if state.target is None else state.target(batch)
                directions = runtime.generator(config.seed, f"directions {step}")  # the same for all parts of a step
                losses = state.parallel(images, batch.masks, target, batch.labels, step / state.steps, directions)
            (losses.total / len(parts)).backward()
        for name, value in {"loss": losses.total, **losses.parts}.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / len(parts)
    trained = [parameter for parameter in state.method.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    gradients = distributed.whole(norm)
    refuse_non_finite(state, totals, gradients, parts)
    if config.optim.clip is not None:
        nn.utils.clip_grads_with_norm_(trained, config.optim.clip, norm)
    state.optimizer.step()
    if step >= config.init.frozen_steps:
        state.method.after_step(rates["momentum"])
    figures: dict[str, Any] = {"step": step + 1, "epoch": step // state.epoch_steps, **totals}
    return figures | {key: rates[key] for key in ("lr", "weight_decay", "momentum")} | {"grad_norm": gradients}


def refuse_non_finite(state: State, totals: dict[str, Tensor], gradients: Tensor, parts: list[Batch]) -> None:
    """Stop before the optimiser and the moving average are touched; say which term, whose gradient, which images.

    With several processes a fault on one makes the gradients of all non-finite, so all stop together.
    """
    figures = {name: float(value) for name, value in {**totals, "grad_norm": gradients}.items()}
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        images = ", ".join(name for part in parts for name in part.names[:4])
        named = state.method.named_parameters()
        # Of the shares of this process: another one may not have come here.
        shares = ((name, distributed.own(each.grad)) for name, each in named if each.grad is not None)
        spoilt = [name for name, share in shares if not share.isfinite().all()]
        gradient = f"gradient of {spoilt[-1]} and {len(spoilt) - 1} others; " if spoilt else ""
        raise RunStopped(
            f"step {state.step + 1}: {', '.join(f'{name} is {figures[name]}' for name in wrong)}; {gradient}"
            f"images {images}, …. Lower optim.lr, or set optim.clip"
        )


def count_unreadable(state: State, folder: RunFolder, skipped: list[str], length: int) -> None:
    """Remember which images could not be read by any process; stop when they are more than 1 % of the source."""
    state.skipped |= dict.fromkeys(distributed.gather(skipped, state.ranks))
    if len(state.skipped) > UNREADABLE_SHARE * length:
        state.saving.settle()
        names = ", ".join(list(state.skipped)[:5])
        raise BadInput(
            f"{len(state.skipped)} of {length} images cannot be read, more than 1 %: {names}; repair or remove them, "
            f"and begin anew, since a run goes on with the very same data alone ({folder.kept})"
        )


def log(state: State, loggers: tuple[Logger, ...], figures: dict[str, Any]) -> None:
    """Log one step: losses are means over all processes."""
    names = [name for name in figures if name.startswith("loss")]
    means = distributed.average(torch.stack([figures[name].float() for name in names]), state.ranks)
    record = figures | dict(zip(names, means.tolist(), strict=True)) | {"grad_norm": float(figures["grad_norm"])}
    for logger in loggers:
        logger.log(record)


def probe_is_due(state: State) -> bool:
    """Whether the encoder is to be probed after the step that was done last."""
    every = state.config.train.probe_every
    return every is not None and state.step % every == 0


def probe(state: State, folder: RunFolder, loggers: tuple[Logger, ...], stopping: Stopping) -> None:
    """Probe the evaluated encoder on the validation data, log the figures, and save it where it is the best so far.

    All processes take part and get the figures of the first one, so that all save the same checkpoints.
    """
    scores = (record.get("probe_score", -math.inf) for record in folder.metrics())
    best = distributed.of_first(max(scores, default=-math.inf), state.ranks)
    with stopping.at_once(), progress.task("probe"):
        found = probe_during_training(whole_encoder(state), state.config, state.device, state.ranks)
    figures, score = distributed.of_first(found, state.ranks)
    if score > best:
        save(state, "best")
        state.saving.settle()  # the score is logged once it is there: a run that is killed before asks again
    record = {"step": state.step, "epoch": state.step // state.epoch_steps, **figures, "probe_score": score}
    for logger in loggers:
        logger.log(record)


__all__ = ["load_config", "train"]
