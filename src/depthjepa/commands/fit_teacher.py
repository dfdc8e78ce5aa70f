"""Fit a compact teacher on RGB-D pairs, judge it on held-out ones, and keep it in DepthFM's layout; resumable.

The folder of a fit:

config.yaml, environment.json, metrics.jsonl, data.json, data.npz   as of any run
vae/              the autoencoder, as diffusers saves it; there once it has learned
teacher.ckpt      the flow, in the layout of depthfm-v1.ckpt; there once it has learned
latents.pt        latents of the crops, while the flow learns from them
progress.pt       what is learning now, with its optimiser
summary.json      figures on held-out pairs, the mean map beside them
figures/maps.png  the same as pictures
judged/NAME.json, figures/maps-NAME.png   of other data that it was judged on as well
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthjepa import locks, runtime
from depthjepa.columns import table
from depthjepa.config.run_config import PLACES, TeacherFitConfig, differences, to_mapping
from depthjepa.data.account import what_is_read
from depthjepa.data.config import DataConfig
from depthjepa.data.contents import contents_of, read_contents, refuse_changed, write_contents
from depthjepa.data.images import Split
from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.loading import TrainingBatches, open_splits, view_batches
from depthjepa.data.metres import describe_depth
from depthjepa.data.order import told_apart
from depthjepa.data.samples import Batch, Source
from depthjepa.data.transforms import Size
from depthjepa.drawing.figures import depth_rows
from depthjepa.drawing.panels import save_figure
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.teachers.depthfm import tiny
from depthjepa.guidance.teachers.depthfm.network import load_autoencoder, load_depthfm
from depthjepa.guidance.teachers.fit.autoencoder import (
    Hinted,
    autoencoder_loss,
    build_autoencoder,
    copy_autoencoder,
    latent_scale,
    save_autoencoder,
)
from depthjepa.guidance.teachers.fit.config import AUTOENCODER, CHECKPOINT
from depthjepa.guidance.teachers.fit.flow import begin_at, build_flow, flow_loss, save_flow
from depthjepa.guidance.teachers.fit.judging import COLUMNS, Predict, judge, mean_log_depth, predictor
from depthjepa.guidance.teachers.fit.learner import Learner
from depthjepa.guidance.teachers.fit.pairs import Pairs, depth_picture, encode_pair
from depthjepa.logbook import RunFolder, plain, to_json, whole_file, write_whole
from depthjepa.progress import task, track
from depthjepa.stopping import Interrupted, Stopping, interruptions

MEAN_MAP_IMAGES = 1000
JUDGED_STEPS = (1, 2, 4)  # of Euler's method
LOG_EVERY = 20
PROGRESS = "progress.pt"
LATENTS = "latents.pt"


def fit_teacher(
    config: TeacherFitConfig,
    out: str | Path,
    *,
    judge_on: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Fit, save and judge a compact teacher. Killed, it goes on where it last saved.

    Returns its table on held-out pairs of its data (the summary), then those on the data sets `judge_on`, each by
    itself; these are made anew whenever they are asked for, also of a fit that has ended.

    Raises `BadInput` for data without depth or without held-out pairs, sides that the network cannot halve, and a
    folder that holds another fit or is in use.
    """
    say = say or (lambda text: print(text, flush=True))
    folder, device = RunFolder(out), runtime.device(config.fit.device)
    others = [_pairs(config.data.elsewhere(root)) for root in judge_on]  # a wrong one is told before hours of fitting
    with locks.locked(folder.path, say=say):
        summary = _fit(config, folder, device, say)
        return [summary, *_judge_elsewhere(config, folder, others, device)]


def _fit(
    config: TeacherFitConfig, folder: RunFolder, device: torch.device, say: Callable[[str], None]
) -> dict[str, Any]:
    """Do it, in a folder that belongs to this process."""
    if not folder.started:
        folder.refuse_other()
    elif "fit" not in folder.config():
        raise BadInput(f"{folder.path} holds a run, not a fit: choose another --out")
    runtime.settle_cpu(config.fit.threads)
    data = _open(config)
    source, held_out, contents = data["train"], data["val"], contents_of(data)
    if folder.started:
        changed = differences(folder.config(), plain(to_mapping(config)))
        if read_contents(folder.path) is not None:
            changed = [key for key in changed if key not in PLACES]
        if changed:
            raise BadInput(f"{folder.path} holds a fit with other values of {', '.join(changed)}: choose another --out")
        refuse_changed(folder.path, contents, say)
    if folder.summary():
        return folder.summary()
    autoencoder, flow = build_autoencoder(config.fit, config.seed), build_flow(config.fit, config.seed)
    if config.fit.start is not None:
        checkpoint, vae = _earlier(config.fit.start)
        earlier = load_depthfm(checkpoint, vae)
        begin_at(flow, earlier.unet, checkpoint)
        autoencoder = earlier.vae
    say(what_is_read(config.data, data))
    for line in describe_depth(source, (config.fit.nearest, config.fit.farthest), "fit.nearest, fit.farthest"):
        say(line)
    say(f"autoencoder {_millions(autoencoder)}, flow {_millions(flow)}; {len(source)} training pairs of {source.name}")
    write_contents(folder.path, contents)
    folder.begin(to_mapping(config), runtime.environment())
    with interruptions("the same command goes on") as stopping:
        if not (place := folder.path / AUTOENCODER).exists():
            if config.fit.start is None:
                _fit_autoencoder(config, folder, autoencoder.to(device), source, device, stopping)
            else:
                copy_autoencoder(_earlier(config.fit.start)[1], place)
        if not (folder.path / CHECKPOINT).exists():
            # From here on with the weights that were saved: the flow fits the autoencoder that it will be used with.
            autoencoder = load_autoencoder(place).to(device)
            pairs = _latents(config, folder, autoencoder, source, device, stopping)
            _fit_flow(
                config, folder, flow.to(device), pairs, float(autoencoder.config.scaling_factor), device, stopping
            )
        for name in (PROGRESS, LATENTS):  # a kill may have come between the last writing and this
            (folder.path / name).unlink(missing_ok=True)
        with stopping.at_once(), task("judging the teacher"):
            summary = _judge(config, folder, source, held_out, device)
    folder.write_summary(summary)
    return summary


def _open(config: TeacherFitConfig) -> dict[Split, Source]:
    """Training pairs and held-out pairs."""
    data = _pairs(config.data)
    for side in config.data.size:
        if side % (multiple := config.fit.multiple):
            near = max(1, round(side / multiple)) * multiple
            raise BadInput(
                f"data.image_size={config.data.image_size}: the sides must be multiples of {multiple} px for a flow "
                f"of {len(config.fit.multiples)} levels; the nearest to {side} is {near}"
            )
    return data


def _pairs(config: DataConfig) -> dict[Split, Source]:
    """Training pairs and held-out pairs of data that have both."""
    data = open_splits(config)
    if not data["train"].has_depth:
        raise BadInput(f"fit-teacher needs depth, but data.root={config.root} has none: give {with_depth()}")
    if "val" not in data:
        raise BadInput(f"fit-teacher judges the teacher on held-out pairs, and {config.root} has no val/")
    return data


def _earlier(place: str) -> tuple[Path, Path]:
    """Checkpoint and autoencoder of the fitted teacher that a fit begins at."""
    files = tiny.files() if place == tiny.NAME else (Path(place) / CHECKPOINT, Path(place) / AUTOENCODER)
    if lacking := [file.name for file in files if not file.exists()]:
        raise BadInput(
            f"fit.start={place} holds no fitted teacher ({', '.join(lacking)} is not there): give the folder of a "
            f"fit that has ended, or {tiny.NAME}"
        )
    return files


def _batches(config: TeacherFitConfig, source: Source, steps: int, start: int = 0) -> TrainingBatches:
    return TrainingBatches(
        source=source,
        data=config.data,
        masks=None,
        grid=(1, 1),
        seed=config.seed,
        batch_size=config.fit.batch_size,
        steps=steps,
        start_step=start,
    )


def _fit_autoencoder(
    config: TeacherFitConfig,
    folder: RunFolder,
    autoencoder: Any,
    source: Source,
    device: torch.device,
    stopping: Stopping,
) -> None:
    hinted = Hinted(autoencoder, config.seed).to(device)
    learner = Learner(hinted, config.fit, config.fit.autoencoder_steps, averaged=False)
    _resume(learner, folder, "autoencoder")
    batches = iter(_batches(config, source, learner.steps, learner.step))

    def loss(step: int) -> Tensor:
        with runtime.precision(config.fit.precision, device):
            return autoencoder_loss(hinted, next(batches).to(device), config.fit, config.seed, step)

    _learn(learner, loss, folder, "autoencoder", config, stopping)
    scale = latent_scale(autoencoder, next(iter(_batches(config, source, 1))).to(device), config.fit)
    save_autoencoder(autoencoder, scale, folder.path / AUTOENCODER)
    (folder.path / PROGRESS).unlink()


def _latents(
    config: TeacherFitConfig,
    folder: RunFolder,
    autoencoder: Any,
    source: Source,
    device: torch.device,
    stopping: Stopping,
) -> Pairs:
    """Latents of the crops, computed once for all sessions of a fit."""
    file = folder.path / LATENTS
    if not file.exists():
        pairs = _encode(config, autoencoder, source, device, stopping)
        with whole_file(file) as stream:
            torch.save(asdict(pairs), stream)
    return Pairs(**torch.load(file, map_location="cpu", weights_only=True))


def _encode(
    config: TeacherFitConfig, autoencoder: Any, source: Source, device: torch.device, stopping: Stopping
) -> Pairs:
    steps = max(1, config.fit.crops // config.fit.batch_size)
    batches = (batch.to(device) for batch in _batches(config, source, steps))
    with stopping.at_once():
        return Pairs.joined(
            [encode_pair(autoencoder, batch, config.fit) for batch in track(batches, "latents of crops", steps)]
        )


def _fit_flow(
    config: TeacherFitConfig,
    folder: RunFolder,
    flow: Any,
    pairs: Pairs,
    scale: float,
    device: torch.device,
    stopping: Stopping,
) -> None:
    learner = Learner(flow, config.fit, config.fit.steps, averaged=True)
    _resume(learner, folder, "flow")
    together = min(config.fit.batch_size, len(pairs))
    per_epoch = len(pairs) // together

    def loss(step: int) -> Tensor:
        epoch, place = divmod(step, per_epoch)
        order = runtime.permutation(len(pairs), seed=config.seed, stream="flow", epoch=epoch)
        chosen = pairs.chosen(order[place * together : (place + 1) * together], scale, device)
        with runtime.precision(config.fit.precision, device):
            return flow_loss(flow, chosen, config.fit, config.seed, step)

    _learn(learner, loss, folder, "flow", config, stopping)
    save_flow(learner.learned, config.fit, folder.path / CHECKPOINT)
    (folder.path / PROGRESS).unlink()


def _learn(
    learner: Learner,
    loss: Callable[[int], Tensor],
    folder: RunFolder,
    part: str,
    config: TeacherFitConfig,
    stopping: Stopping,
) -> None:
    """Step until the end, logging and saving on the way; raises `RunStopped` when asked to stop or not finite."""
    with task(part, learner.steps, learner.step) as shown:
        while learner.step < learner.steps:
            try:
                with stopping.at_once():
                    value = loss(learner.step)
            except Interrupted as asked:
                learner.save(folder.path / PROGRESS, part)
                raise RunStopped(
                    f"stopped at step {learner.step} of {learner.steps} of the {part}; the same command goes on"
                ) from asked
            try:
                learner.update(value)
            except RunStopped as fault:
                raise RunStopped(
                    f"{part}, step {learner.step + 1}: {fault}; what was saved before is whole. Lower fit.lr"
                ) from fault
            shown.done = learner.step
            if learner.step % LOG_EVERY == 0:
                mean = learner.mean_loss()
                folder.log({"part": part, "step": learner.step, f"loss_{part}": mean})
                shown.figures = f"loss {mean:.3f}"
            if learner.step % config.fit.checkpoint_every == 0 or learner.step == learner.steps:
                learner.save(folder.path / PROGRESS, part)


def _resume(learner: Learner, folder: RunFolder, part: str) -> None:
    """Go on with what was saved of a part, and forget what was logged of it since."""
    if (file := folder.path / PROGRESS).exists():
        learner.resume(file, part)
    logged = folder.metrics()
    kept = [record for record in logged if record["part"] != part or record["step"] <= learner.step]
    if len(kept) < len(logged):
        write_whole(folder.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def _judge(
    config: TeacherFitConfig, folder: RunFolder, source: Source, held_out: Source, device: torch.device
) -> dict[str, Any]:
    """Figures of what was saved on held-out pairs, and what it weighs."""
    written = sum(file.stat().st_size for file in _files(folder))
    return _figures(config, folder, source, held_out, config.data.size, "maps", device) | {"bytes": written}


def _judge_elsewhere(
    config: TeacherFitConfig, folder: RunFolder, others: Sequence[dict[Split, Source]], device: torch.device
) -> list[dict[str, Any]]:
    """Figures on held-out pairs of other data, each by itself, in the proportions of its own images."""
    names = told_apart([Path(other["val"].name).name for other in others])
    # Whatever has no depth in the pairs of the fit (the sky, where they are rendered), elsewhere it was not measured.
    config = replace(config, fit=replace(config.fit, holes="nearest"))
    tables = []
    for name, other in zip(names, others, strict=True):
        size = _own_proportions(config, other["val"])
        found = _figures(config, folder, other["train"], other["val"], size, f"maps-{name}", device)
        write_whole(folder.path / "judged" / f"{name}.json", to_json(found))
        tables.append(found)
    return tables


def _own_proportions(config: TeacherFitConfig, source: Source) -> Size:
    """Height and width [px] as of a source's first image: its shorter side as in the fit, both of whole cells."""
    (image,) = (batch.images for batch in view_batches(source, lambda height, width: (height, width), limit=1))
    sides, multiple = image.shape[-2:], config.fit.multiple
    height, width = (max(1, round(side * min(config.data.size) / min(sides) / multiple)) * multiple for side in sides)
    return height, width


def _figures(
    config: TeacherFitConfig,
    folder: RunFolder,
    source: Source,
    held_out: Source,
    size: Size,
    picture: str,
    device: torch.device,
) -> dict[str, Any]:
    """A table of the saved teacher beside the mean map and what the autoencoder alone would lose, and a picture."""
    teacher = load_depthfm(folder.path / CHECKPOINT, folder.path / AUTOENCODER).to(device)
    mean = mean_log_depth(_views(config, source, size, MEAN_MAP_IMAGES), config.fit.judged)

    def autoencoded(batch: Batch) -> Tensor:
        drawn, _ = depth_picture(batch, config.fit)
        return teacher.decode(teacher.image_latents((drawn + 1) / 2)).log()

    predictors: dict[str, Predict] = {
        "mean map": lambda batch: mean.to(batch.images).expand(len(batch.images), -1, -1, -1),
        **{f"{steps} {'step' if steps == 1 else 'steps'}": predictor(teacher, steps) for steps in JUDGED_STEPS},
        "autoencoder alone": autoencoded,
    }
    batches = (batch.to(device) for batch in _views(config, held_out, size, config.fit.val_images))
    rows, pictures = judge(predictors, batches, config.fit.judged)
    save_figure(depth_rows(*pictures), folder.path / "figures" / f"{picture}.png")
    low, high = config.fit.judged
    protocol = (
        f"{min(config.fit.val_images, len(held_out))} held-out pairs, whole views at {size[0]} x {size[1]} px; log "
        f"depth aligned to each image's ground truth by scale and shift; pixels from {low:g} to {high:g} m; means "
        f"over images"
    )
    return table("teacher", held_out.name, protocol, COLUMNS, rows)


def _files(folder: RunFolder) -> list[Path]:
    """What a fitted teacher is."""
    return [folder.path / CHECKPOINT, *(folder.path / AUTOENCODER).iterdir()]


def _views(config: TeacherFitConfig, source: Source, size: Size, limit: int) -> Iterator[Batch]:
    return view_batches(source, size, batch_size=config.fit.batch_size, limit=limit)


def _millions(network: Any) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters"
