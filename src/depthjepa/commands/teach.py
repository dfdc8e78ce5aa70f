"""Compute a teacher's latents once: every image of every split, resumable, by one process or many.

Processes come and go, each with the same command, and do not talk to each other: each goes through its own share of the
parts and then helps with what others have not finished, one part at a time that nobody else has claimed. At the end
whichever comes first lists the parts and measures how latents that are cut from the cache differ from the teacher's own
of the same crops.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from depthjepa import distributed, locks, runtime
from depthjepa.config.run_config import RunConfig, keys
from depthjepa.cost import size_of
from depthjepa.data.account import what_is_read
from depthjepa.data.contents import stamps_of
from depthjepa.data.loading import TrainingBatches, open_splits, view_batches
from depthjepa.data.memory import first_readable
from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch, Chosen, Source
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Teacher, on_cells, resized
from depthjepa.guidance.teachers import cache
from depthjepa.guidance.teachers import cache_files as files
from depthjepa.guidance.teachers.cache import CachedTeacher
from depthjepa.guidance.teachers.cache_files import Facts
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.guidance.teachers.whole_images import latents_of_whole, of_one_size
from depthjepa.logbook import refuse_unwritable, to_json, write_whole, writing
from depthjepa.progress import task
from depthjepa.shared_work import SUFFIX, claimed, refuse_shard, sweep
from depthjepa.stopping import interruptions

Places = dict[str, tuple[int, int]]

LOOKED_AT = 16  # images whose latents say how large those of all are kept
CROPS = 64  # on which the cache is compared with the teacher

PAUSES = (0.5, 15.0)  # seconds between two looks at what others do, the first and the longest
LOOKED_AFTER = 16  # claims of others that a look is at: whether they were left behind

CLOSE, HALF = 0.75, 0.5  # shares of variance at which the verdict on a cache changes


# Beginnings of the keys that latents, their comparison and their place depend on.
READ = (
    "data.", "guidance.teacher", "evaluation.batch_size", "model.patch_size", "seed", "name", "train.device",
    "train.threads",
)  # fmt: skip


def refuse_unread(given: Sequence[str]) -> None:
    """Raise `BadInput` for keys of a run that latents do not depend on; keys that are none are refused elsewhere."""
    known = keys(RunConfig)
    if unread := [key for key in given if key in known and not key.startswith(READ)]:
        raise BadInput(
            f"{', '.join(unread)}: no effect on latents of whole images; a run that learns from them takes it"
        )


def teach(
    config: RunConfig,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    say: Callable[[str], None] | None = None,
) -> Facts:
    """Compute the latents of all images of `config.data` with the teacher of `config.guidance`; goes on after a kill.

    Any number of processes may do so at once in the same folder; with `shard` = (i, n) this one does the i-th of n
    shares of the parts first. Returns when all parts are done, whoever did them.

    Raises:
        BadInput: the teacher or the data cannot be had, or `out` holds something else, or is in use by another command.
        RunStopped: the disk is full; Ctrl-C or SIGTERM; the same command goes on.
    """
    refuse_shard(shard)
    folder, ranks = Path(out), distributed.ranks()
    say = (say or (lambda text: print(text, flush=True))) if ranks.first else lambda _: None
    share = (shard[0] * ranks.world + ranks.rank, shard[1] * ranks.world)
    refuse_unwritable(folder, folder=True)
    locks.refuse_held(folder)
    cache.refuse_other(folder)
    runtime.settle_cpu(config.train.threads)
    device = runtime.device(config.train.device, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    data = open_splits(config.data)
    sources = list(data.values())
    teacher = load_network(asked_of(config)).to(device)
    if ranks.first:
        say(what_is_read(config.data, data))
    places = places_of(sources)
    stamps = _stamps(sources, places)
    if not (folder / "cache.json").exists():
        facts = _facts(config, teacher, sources[0], len(places), device)
        _refuse_small_disk(folder, facts)
        cache.create_cache(folder, facts, list(places), stamps)
    cache.refuse_other_cache(folder, cache.made_of(asked_of(config)), list(places), stamps, say)
    facts = files.read_facts(folder)
    if facts.format == 1 and files.lacking(folder, facts):
        raise BadInput(
            f"{folder} is a cache of format 1 that was not finished, and this version writes format {files.FORMAT}: "
            f"choose another folder, or remove this one; finished ones of format 1 are read as before"
        )
    say(f"{len(places)} images, {size_of(files.size_of(facts))} in {folder}")
    with (
        interruptions(f"what is in {folder} is kept, and the same command goes on") as stopping,
        stopping.at_once(),
    ):
        if facts.format != 1:
            fill_cache(folder, teacher, sources, places, config, share, device)
        facts = finish_cache(folder, teacher, sources[0], config, device)
    assert facts.crops is not None
    say(
        f"{facts.crops['crops']:.0f} crops cut from the cache, against the teacher's own latents: correlation "
        f"{facts.crops['correlation']:.3f}, root mean square difference {facts.crops['difference']:.3f} deviations"
        f"; {verdict(facts.crops['correlation'])}"
    )
    return facts


def verdict(correlation: float) -> str:
    """What crops that are cut from a cache are worth beside the teacher's own, in words; the limits are proposals."""
    share = max(0.0, correlation) ** 2
    if share >= CLOSE:
        return f"close: they share {share:.0%} of their variance"
    if share >= HALF:
        return (
            f"usable: they share {share:.0%} of their variance; a larger guidance.teacher_size or data.crop_scale "
            f"brings them nearer"
        )
    return (
        f"far off: they share {share:.0%} of their variance, so it matters which of the two guides. Where the teacher "
        f"was trained on whole images of this size keep the cache; else take a larger guidance.teacher_size or "
        f"data.crop_scale, or no cache"
    )


def asked_of(config: RunConfig) -> FeatureGuidance:
    """The guidance whose teacher is asked; raises `BadInput` for a configuration without a teacher."""
    if not isinstance(config.guidance, FeatureGuidance):
        raise BadInput(f"guidance.kind={config.guidance.kind} has no teacher: latents are for guidance.kind=feature")
    return config.guidance


def load_network(guidance: FeatureGuidance) -> Teacher:
    """The teacher network of `guidance.teacher_*`; raises `BadInput` for one that is none."""
    kind = teacher_kind(guidance.teacher)
    if not kind.is_network:
        raise BadInput(
            f"the {guidance.teacher} teacher needs no cache: its latents are the depth files; name a network "
            f"(--teacher)"
        )
    return kind.build(guidance)


def _facts(config: RunConfig, teacher: Teacher, source: Source, images: int, device: torch.device) -> Facts:
    """Describe the cache; the shape of its latents is found out on some images: the longest rows and columns."""
    some = [first_readable(source, int(place))[0] for place in evenly(LOOKED_AT, len(source))]
    batches = view_batches(Chosen(source, np.unique(some)), asked_of(config).whole_size)
    sizes: dict[tuple[int, int], Batch] = {}
    for batch in batches:
        sizes.setdefault((batch.images.shape[-2], batch.images.shape[-1]), batch)
    shapes = [tuple(latents_of_whole(teacher, batch.to(device)).values.shape[1:]) for batch in sizes.values()]
    channels, rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
    shape = (channels, rows, columns)
    return Facts(
        cache.made_of(asked_of(config)),
        asdict(teacher.describe()),
        source.name,
        images,
        shape,
        together=files.together_of(images, shape),
    )


def _refuse_small_disk(folder: Path, facts: Facts) -> None:
    """Find out before the first part whether there is room for all of them, as far as the file system tells."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    needed, free = files.size_of(facts), shutil.disk_usage(there).free
    if free < needed:
        raise RunStopped(
            f"the disk is too full: the latents take {size_of(needed)}, and {there} has {size_of(free)} free; make "
            f"room and give the command again"
        )


def fill_cache(
    folder: Path,
    teacher: Teacher,
    sources: list[Source],
    places: Places,
    config: RunConfig,
    share: tuple[int, int],
    device: torch.device,
) -> None:
    """Compute parts that are not done, a share first, until all are there; `share` = (i, n): the i-th of n."""
    facts, listed = files.read_facts(folder), list(places)
    with contextlib.closing(_parts_to_do(folder, facts, share)) as parts:  # a claim is given back whatever happens
        for part in parts:
            rows = facts.rows_of(part)
            values = np.full((len(rows), *facts.shape), np.nan, dtype=np.float16)
            for number, source in enumerate(sources):
                chosen = [(row, places[listed[row]][1]) for row in rows if places[listed[row]][0] == number]
                for row, latent in _latents(teacher, source, chosen, config, facts.shape[1:], device):
                    values[row - rows.start] = latent
            files.write_part(folder, part, values)


def _parts_to_do(folder: Path, facts: Facts, share: tuple[int, int]) -> Generator[int]:
    """Parts for this process to compute, each claimed until the next one is asked for; ends when all parts are there.

    Where all that is left is claimed by others it waits, for their parts or for claims that were left behind.
    """
    with writing(folder):
        (folder / "parts").mkdir(exist_ok=True)
    done, begun = files.parts_there(folder)
    pause = PAUSES[0]
    with task(f"parts of {facts.together} latents", facts.parts, len(done)) as shown:
        while left := in_turn(facts.parts, done, share):
            others, worked = [part for part in left if part in begun], False
            for part in (*(part for part in left if part not in begun), *others[:LOOKED_AFTER]):
                file = files.part_file(folder, part)
                if file.exists():
                    continue
                with claimed(files.claim_file(folder, part)) as mine:
                    if mine and not file.exists():
                        (folder / files.LIST).unlink(missing_ok=True)  # of a cache that a damaged part was taken from
                        yield part
                        worked = True
                        shown.done += 1
            if not worked:
                time.sleep(pause)
            pause = PAUSES[0] if worked else min(2 * pause, PAUSES[1])
            done, begun = files.parts_there(folder)
            shown.done = len(done)


def in_turn(parts: int, done: Collection[int], share: tuple[int, int]) -> list[int]:
    """The parts that are not done, in the order in which a process takes them: its own share, then those of others.

    Shares are runs of parts. Whoever helps begins at the end of a share, the next one's first, and meets its owner.
    """
    number, count = share
    shares = [range(each * parts // count, (each + 1) * parts // count) for each in range(count)]
    helped = [part for each in (*shares[number + 1 :], *shares[:number]) for part in reversed(each)]
    return [part for part in (*shares[number], *helped) if part not in done]


def finish_cache(folder: Path, teacher: Teacher, source: Source, config: RunConfig, device: torch.device) -> Facts:
    """List the parts and compare crops with the teacher: one process does, others wait for it; then tidy up."""
    pause = PAUSES[0]
    while True:
        facts = files.read_facts(folder)
        if facts.crops is not None and not files.lacking(folder, facts):
            break
        with claimed(folder / f"end{SUFFIX}") as mine:
            facts = files.read_facts(folder)
            if mine and files.lacking(folder, facts):
                files.write_list(folder, facts)
            if mine and facts.crops is None:
                with task("comparing the cache with the teacher"):
                    facts = replace(facts, crops=_compare(folder, teacher, source, config, device))
                write_whole(folder / "cache.json", to_json(asdict(facts)))
        if not mine:
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
    for each in (folder, folder / "parts"):
        if each.is_dir():
            sweep(each)
    return facts


def places_of(sources: list[Source]) -> Places:
    """Each image's name with the number of its source and its index there; of equal names the first."""
    found: Places = {}
    for number, source in enumerate(sources):
        for index, name in enumerate(cache.names_of(source)):
            found.setdefault(name, (number, index))  # a folder without splits is its own validation data
    return found


def _stamps(sources: list[Source], places: Places) -> Int64[np.ndarray, " images"]:
    """What tells the images from others of their names, in the order of the places."""
    stamps = [stamps_of(source)[:, 0] for source in sources]
    return np.array([stamps[number][index] for number, index in places.values()], dtype=np.int64)


def _latents(
    teacher: Teacher,
    source: Source,
    chosen: list[tuple[int, int]],
    config: RunConfig,
    shape: tuple[int, int],
    device: torch.device,
) -> Iterator[tuple[int, np.ndarray]]:
    """Latents of some images of a source, each with the row that it belongs to; unreadable images are left out."""
    if not chosen:
        return
    indices: Int64[np.ndarray, " k"] = np.array([index for _, index in chosen], dtype=np.int64)
    size = asked_of(config).whole_size
    batches = view_batches(Chosen(source, indices), size, workers=config.data.workers, may_be_empty=True)
    for batch in of_one_size((batch for batch in batches if len(batch.index)), config.evaluation.batch_size):
        # Resized: an image may have other proportions than those that set the shape.
        latents = resized(latents_of_whole(teacher, batch.to(device)), shape)
        values = torch.where(latents.valid, latents.values, torch.nan)
        for number, latent in zip(batch.index.tolist(), values.half().cpu().numpy(), strict=True):
            yield chosen[number][0], latent


def _compare(
    folder: Path, teacher: Teacher, source: Source, config: RunConfig, device: torch.device
) -> dict[str, float]:
    """How latents of crops that are cut from the cache differ from the teacher's own, over cells and channels."""
    count = min(CROPS, len(source))
    batches = TrainingBatches(
        source=source, data=config.data, masks=None, grid=config.grid, seed=config.seed, batch_size=count, steps=1
    )
    batch = next(iter(batches)).to(device)
    each = [on_cells(asked, batch, config.target_cells) for asked in (teacher, CachedTeacher(cache.open_cache(folder)))]
    both = (each[0].valid & each[1].valid).all(1).flatten()
    own, ours = (latents.values.transpose(0, 1).flatten(1)[:, both].double() for latents in each)
    deviation = own.std(1)
    together = ((own - own.mean(1, keepdim=True)) * (ours - ours.mean(1, keepdim=True))).mean(1)
    return {
        "crops": float(count),
        "correlation": float((together / (deviation * ours.std(1))).mean()),
        "difference": float(((own - ours).square().mean(1).sqrt() / deviation).mean()),
    }
