"""What is settled, and what is refused, before the first step of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from depthjepa import distributed, optim, runtime
from depthjepa.config.reading import build_config, load_config, read_resolved
from depthjepa.config.run_config import PLACES, RunConfig, differences, to_mapping
from depthjepa.data.contents import Contents, contents_of, read_contents, refuse_changed
from depthjepa.data.images import Split
from depthjepa.data.layouts.layout import path_of, place_of_root
from depthjepa.data.loading import TrainingBatches, open_splits
from depthjepa.data.order import weighted_roots
from depthjepa.data.samples import Source
from depthjepa.faults import BadInput
from depthjepa.guidance.build import contents_of_teacher, refuse_other_images
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.logbook import RunFolder
from depthjepa.loggers.logger import check_libraries
from depthjepa.masks import sample_masks

LENGTHS = ("train.steps", "train.epochs")


def what_to_run(recipe: str, overrides: Sequence[str], out: Path | None, *, resume: bool) -> tuple[RunConfig, Path]:
    """The configuration and the folder of a run; `out` is runs/NAME by default.

    A run that is resumed starts from the configuration in its folder, whatever became of the recipe since: of what is
    asked for, the overrides alone can differ from it (`refuse_mix_up` names those that do).
    """
    if out is None or not (resume and RunFolder(out).started):
        config = load_config(recipe, overrides)
        out = out or Path("runs") / config.name
        if not resume:
            return config, out
        if not RunFolder(out).started:
            raise BadInput(f"--resume: there is no run in {out}; leave --resume out to start one there")
    return build_config(to_mapping(_config_there(RunFolder(out))), overrides), out


def _config_there(folder: RunFolder) -> RunConfig:
    """The configuration of the run in a folder; raises `BadInput` for one that this version cannot go on with."""
    config, lost = read_resolved(folder.config())
    if lost:
        raise BadInput(
            f"--resume: the run in {folder.path} was started with {', '.join(lost)}, which this version no longer has; "
            f"go on with the version that started it, or choose another --out"
        )
    return config


def refuse_mix_up(config: RunConfig, folder: RunFolder, *, resume: bool, lengthen: bool = False) -> None:
    """Refuse to write over a run or amid other files, and to resume another run than the one that is there.

    One that is lengthened differs from itself in how long it is to be.
    """
    if not folder.started:
        folder.refuse_other()
        return
    if not resume:
        raise BadInput(f"{folder.path} holds a run already: continue it with --resume, or choose another --out")
    changed = differences(to_mapping(_config_there(folder)), to_mapping(config))
    if read_contents(folder.path) is not None:
        changed = [key for key in changed if key not in PLACES]  # what lies there decides: see `contents_of_run`
    if lengthen:
        changed = [key for key in changed if key not in LENGTHS]
    if changed:
        longer = "; --lengthen makes it longer" if not lengthen and set(changed) <= set(LENGTHS) else ""
        raise BadInput(
            f"--resume with changed keys: {', '.join(changed)}; the run in {folder.path} has other values{longer}"
        )


def steps_before(config: RunConfig, folder: RunFolder, epoch_steps: int) -> int:
    """The steps that the run in a folder was to have until now.

    Raises `BadInput` where a configuration that lengthens it does not ask for more; a run that was stopped while it was
    being lengthened has the new length already.
    """
    before, now = (each.train.total_steps(epoch_steps) for each in (_config_there(folder), config))
    if now < before or (now == before and folder.finished):
        raise BadInput(
            f"--lengthen: the run in {folder.path} is one of {before} steps, and {now} are asked for: give more of "
            f"train.steps or train.epochs"
        )
    return before


def rates_change(config: RunConfig, step: int, before: int, now: int, epoch_steps: int) -> str:
    """What lengthening does to the rates, which are functions of the share of the run that is done, in a sentence.

    Compared are those of the last step that was done and of the next one.
    """
    old, new = (
        optim.rates(
            config.optim,
            at,
            steps=steps,
            epoch_steps=epoch_steps,
            batch_size=config.train.batch_size,
            thaw=(config.init.frozen_steps, config.init.thaw_steps),
        )
        for at, steps in ((max(0, step - 1), before), (step, now))
    )
    changes = ", ".join(
        f"{name} {old[key]:.3g} to {new[key]:.3g}"
        for key, name in (("lr", "learning rate"), ("weight_decay", "weight decay"), ("momentum", "momentum"))
        if old[key] != new[key]
    )
    return (
        f"lengthened from {before} to {now} steps: step {step + 1} has the rates of a run of {now} steps"
        + f" ({changes})" * bool(changes)
        + "; a run that had been so long from its first step would have had them from there"
    )


def open_data(config: RunConfig, folder: RunFolder) -> dict[Split, Source]:
    """Open the data of a run; raises `BadInput`, which says how one goes on whose data are not where they were."""
    try:
        return open_splits(config.data)
    except BadInput as fault:
        if not folder.started:
            raise
        places = [place_of_root(root) for root, _ in weighted_roots(config.data.root)]
        moved = any(place is not None and not place.exists() for place in places)
        textures = config.data.scene_textures
        if moved or (textures is not None and not path_of(textures).exists()):
            key = "data.root" if moved else "data.scene_textures"
            raise BadInput(f"{fault}; a run whose data have moved goes on with {key}=PLACE") from fault
        raise


def is_moved(config: RunConfig, folder: RunFolder) -> bool:
    """Whether a configuration has the data of the run in a folder at another place."""
    return not set(PLACES).isdisjoint(differences(to_mapping(_config_there(folder)), to_mapping(config)))


def contents_of_run(
    config: RunConfig, data: Mapping[Split, Source], folder: RunFolder, say: Callable[[str], None]
) -> dict[str, Contents]:
    """What a run learns from: its data and what teaches it.

    Raises `BadInput` where the run in the folder began with others, or a cache was made of other images.
    """
    found = contents_of(data) | contents_of_teacher(config.guidance)
    if (note := refuse_other_images(config.guidance, data["train"])) is not None:
        say(note)
    if folder.started:
        refuse_changed(folder.path, found, say)
    return found


def refuse_impossible(config: RunConfig, data: Mapping[Split, Source], ranks: distributed.Ranks) -> None:
    """Refuse what can be seen to go wrong before a teacher is asked, weights are made or anything is printed."""
    refuse_unusable_validation(config, data.get("val"))
    refuse_frozen_without_head(config)
    refuse_size_without_cache(config)
    refuse_impossible_batches(config, data["train"], ranks)
    refuse_single_images(config, ranks.world)
    check_libraries(config.train.loggers)


def refuse_unusable_validation(config: RunConfig, held_out: Source | None) -> None:
    """Find out before the first step whether the probes of this run will have what they need of its validation data."""
    if not config.train.probe_every:
        return
    if held_out is None:
        raise BadInput(
            f"train.probe_every needs validation data, and {config.data.root} has no val/ (of "
            f"a folder of pairs, data.val_prefixes makes one)"
        )
    if not (held_out.classes or held_out.has_depth):
        raise BadInput(f"train.probe_every needs labels or depth, and {config.data.root} has neither")


def refuse_impossible_batches(config: RunConfig, source: Source, ranks: distributed.Ranks) -> None:
    """Refuse batches that cannot be divided, and masks that cannot be drawn."""
    TrainingBatches(
        source=source,
        data=config.data,
        masks=config.masks,
        grid=config.grid,
        seed=config.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        ranks=ranks,
        steps=1,
    )
    if config.train.objective == "jepa":
        try:
            sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=np.arange(2), batch_index=0)
        except MemoryError as fault:
            raise BadInput(
                f"masks of {config.grid[0]} x {config.grid[1]} patches do not fit into memory: lower data.image_size"
            ) from fault


def refuse_frozen_without_head(config: RunConfig) -> None:
    """Refuse steps in which nothing could learn. (A run may stay frozen to its end: a head on fixed features.)"""
    if config.init.frozen_steps and config.train.objective == "jepa" and config.guidance.kind == "none":
        raise BadInput(
            f"init.frozen_steps={config.init.frozen_steps} trains the head alone, and an unguided run has none: "
            f"give guidance.kind=feature or init.frozen_steps=0"
        )


def refuse_single_images(config: RunConfig, world: int) -> None:
    """Refuse parts of one image where a term compares the images of a part: of one alone it is nothing, or not finite.

    `world`: how many processes share a step.
    """
    # Terms of the loss compare the images of all processes, controls of a teacher those of a process.
    for comparing, parts in (
        ([f"{term} (0 switches it off)" for term in _comparing_terms(config)], config.train.accumulate),
        (_comparing_control(config), config.train.accumulate * world),
    ):
        if comparing and config.train.batch_size == parts:
            where = f"in each of the {parts} parts of a step" if parts > 1 else "at a time"
            raise BadInput(
                f"train.batch_size={config.train.batch_size} leaves one image {where}, and {' and '.join(comparing)} "
                f"compare{'s' if len(comparing) == 1 else ''} several: take train.batch_size={2 * parts} or more"
            )
    drawn = [each for each in _comparing_control(config) if each.endswith("=another")]
    if drawn and config.evaluation.pictures == 1:
        raise BadInput(f"{drawn[0]} draws each image beside another: take evaluation.pictures=2 or more")


def parts_note(config: RunConfig, world: int) -> str:
    """What to say of a run whose objective depends on the number of parts or processes of a step; empty for others."""
    size, notes = config.train.batch_size, []
    if config.train.accumulate > 1 and (terms := _comparing_terms(config)):
        notes.append(
            f"train.accumulate={config.train.accumulate}: {' and '.join(terms)} compare the "
            f"{size // config.train.accumulate} images of a part of a step, not all {size}"
        )
    if config.train.accumulate * world > 1 and (controls := _comparing_control(config)):
        notes.append(
            f"{' and '.join(controls)} is drawn from the {size // (config.train.accumulate * world)} images that a "
            f"process has at a time"
        )
    return "; ".join(notes) + (": another objective than in one part" if notes else "")


def _comparing_terms(config: RunConfig) -> list[str]:
    """Terms of the loss that compare images."""
    if config.train.objective != "jepa":
        return []
    return [f"loss.{name}" for name in ("variance", "covariance", "gaussian") if getattr(config.loss, name)]


def _comparing_control(config: RunConfig) -> list[str]:
    """The controls that take what they say from several images."""
    if not isinstance(config.guidance, FeatureGuidance):
        return []
    asked = {"guidance.control": config.guidance.control, "guidance.beside": config.guidance.beside}
    return [f"{key}={control}" for key, control in asked.items() if control in ("another", "mean")]


def refuse_size_without_cache(config: RunConfig) -> None:
    """Refuse a size of images for a cache where there is none: the teacher sees the crops themselves."""
    guidance = config.guidance
    if isinstance(guidance, FeatureGuidance) and guidance.cache is None:
        size, default = guidance.teacher_size, FeatureGuidance().teacher_size
        if size != default:
            raise BadInput(
                f"guidance.teacher_size={size} has no effect here: it takes guidance.cache (without one, the teacher "
                f"is asked about crops at data.image_size)"
            )


def settle_precision(config: RunConfig, folder: RunFolder, device: torch.device, ranks: distributed.Ranks) -> RunConfig:
    """Put a precision in the place of `auto`: that of the run that is there, else the faster one, on all ranks alike.

    The processes must be able to talk, unless the run is there.
    """
    if config.train.precision != "auto":
        return config
    if folder.started:
        chosen = folder.config()["train"]["precision"]
    else:
        wish = torch.tensor(float(runtime.faster_precision(device) == "bf16"), device=device)
        chosen = "bf16" if float(distributed.average(wish, ranks)) > 0.5 else "fp32"
    return replace(config, train=replace(config.train, precision=chosen))
