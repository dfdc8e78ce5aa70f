"""Compute a teacher's latents once: every image of every split, resumable, by one process or many.

Each process computes parts of its own and writes them where they belong, so nothing is gathered; a part is done when
its checksum stands in `parts.bin`, after its latents. At the end the first process measures how latents that are cut
from the cache differ from the teacher's own of the same crops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from depthjepa import distributed, locks, runtime
from depthjepa.config import RunConfig, keys
from depthjepa.cost import size_of
from depthjepa.data.account import what_is_read
from depthjepa.data.contents import stamps_of
from depthjepa.data.loading import TrainingBatches, open_splits, view_batches
from depthjepa.data.memory import first_readable
from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch, Chosen, Source
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Teacher, on_cells
from depthjepa.guidance.teachers import cache
from depthjepa.guidance.teachers.cache import DONE, TOGETHER, CachedTeacher, Facts
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.guidance.teachers.whole_images import latents_of_whole, of_one_size, resampled
from depthjepa.logbook import to_json, write_whole
from depthjepa.progress import task, track
from depthjepa.stopping import interruptions

Places = dict[str, tuple[int, int]]

LOOKED_AT = 16  # images whose latents say how large those of all are kept
CROPS = 64  # on which the cache is compared with the teacher

CLOSE, HALF = 0.75, 0.5  # shares of variance at which the verdict on a cache changes


# Beginnings of the keys that latents, their comparison and their place depend on.
READ = (
    "data.", "guidance.teacher", "evaluation.batch_size", "model.patch_size", "seed", "name", "train.device",
    "train.threads", "train.timeout_minutes",
)  # fmt: skip


def refuse_unread(given: Sequence[str]) -> None:
    """Raise `BadInput` for keys of a run that latents do not depend on; keys that are none are refused elsewhere."""
    known = keys(RunConfig)
    if unread := [key for key in given if key in known and not key.startswith(READ)]:
        raise BadInput(
            f"{', '.join(unread)}: no effect on latents of whole images; a run that learns from them takes it"
        )


def teach(config: RunConfig, out: str | Path, *, say: Callable[[str], None] | None = None) -> Facts:
    """Compute the latents of all images of `config.data` with the teacher of `config.guidance`; goes on after a kill.

    Raises `BadInput` where the teacher or the data cannot be had, or `out` holds something else or is in use.
    """
    folder, place = Path(out), distributed.ranks()
    say = (say or (lambda text: print(text, flush=True))) if place.first else lambda _: None
    runtime.settle_cpu(config.train.threads)
    where = runtime.device(config.train.device, place)
    with (
        distributed.process_group(place, where, config.train.timeout_minutes),
        locks.locked(folder, place, say=say),
    ):
        cache.refuse_other(folder)
        data = open_splits(config.data)
        sources = list(data.values())
        teacher = load_network(asked_of(config)).to(where)
        if place.first:
            say(what_is_read(config.data, data))
        places = places_of(sources)
        distributed.first_writes(
            place,
            lambda: cache.create_cache(
                folder,
                _facts(config, teacher, sources[0], len(places), where),
                list(places),
                _stamps(sources, places),
                say,
            ),
        )
        facts = cache.read_facts(folder)
        say(f"{len(places)} images, {size_of(cache.size_of(facts))} in {folder}")
        with (
            interruptions(f"what is in {folder} is kept, and the same command goes on") as stopping,
            stopping.at_once(),
        ):
            fill_cache(folder, teacher, sources, places, config, place, where)
            distributed.wait_for_all(place)
            if place.first and facts.crops is None:
                with task("comparing the cache with the teacher"):
                    facts = replace(facts, crops=_compare(folder, teacher, sources[0], config, where))
                write_whole(folder / "cache.json", to_json(asdict(facts)))
    if facts.crops is not None:
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


def _facts(config: RunConfig, teacher: Teacher, source: Source, images: int, where: torch.device) -> Facts:
    """Describe the cache; the shape of its latents is found out on some images: the longest rows and columns."""
    some = [first_readable(source, int(place))[0] for place in evenly(LOOKED_AT, len(source))]
    batches = view_batches(Chosen(source, np.unique(some)), asked_of(config).whole_size)
    sizes: dict[tuple[int, int], Batch] = {}
    for batch in batches:
        sizes.setdefault((batch.images.shape[-2], batch.images.shape[-1]), batch)
    shapes = [tuple(latents_of_whole(teacher, batch.to(where)).shape[1:]) for batch in sizes.values()]
    channels, rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
    return Facts(
        cache.made_of(asked_of(config)),
        asdict(teacher.describe()),
        source.name,
        images,
        (channels, rows, columns),
        together=TOGETHER,
    )


def fill_cache(
    folder: Path,
    teacher: Teacher,
    sources: list[Source],
    places: Places,
    config: RunConfig,
    place: distributed.Ranks,
    where: torch.device,
) -> None:
    """Compute the parts of this process that are not done."""
    files = cache.open_cache(folder, finished=False, mode="r+")
    left = [part for part in place.share(len(files.parts)) if not files.parts[part] & DONE]
    listed, together = list(places), files.facts.together
    for part in track(left, f"parts of {together} latents", len(left)):
        rows = range(part * together, min((part + 1) * together, len(listed)))
        values = np.full((len(rows), *files.facts.shape), np.nan, dtype=np.float16)
        for number, source in enumerate(sources):
            chosen = [(row, places[listed[row]][1]) for row in rows if places[listed[row]][0] == number]
            for row, latent in _latents(teacher, source, chosen, config, files.facts.shape[1:], where):
                values[row - rows.start] = latent
        files.latents[rows.start : rows.stop] = values
        files.latents.flush()  # type: ignore[attr-defined]
        files.parts[part] = cache.checksum(values) << 1 | DONE
        files.parts.flush()  # type: ignore[attr-defined]


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
    where: torch.device,
) -> Iterator[tuple[int, np.ndarray]]:
    """Latents of some images of a source, each with the row that it belongs to; unreadable images are left out."""
    if not chosen:
        return
    indices: Int64[np.ndarray, " k"] = np.array([index for _, index in chosen], dtype=np.int64)
    size = asked_of(config).whole_size
    batches = view_batches(Chosen(source, indices), size, workers=config.data.workers, may_be_empty=True)
    for batch in of_one_size(batches, config.evaluation.batch_size):
        values = latents_of_whole(teacher, batch.to(where))
        values = resampled(values, shape)  # of an image of other proportions than those that set the shape
        for number, latent in zip(batch.index.tolist(), values.half().cpu().numpy(), strict=True):
            yield chosen[number][0], latent


def _compare(
    folder: Path, teacher: Teacher, source: Source, config: RunConfig, where: torch.device
) -> dict[str, float]:
    """How latents of crops that are cut from the cache differ from the teacher's own, over cells and channels."""
    count = min(CROPS, len(source))
    batches = TrainingBatches(
        source=source, data=config.data, masks=None, grid=config.grid, seed=config.seed, batch_size=count, steps=1
    )
    batch = next(iter(batches)).to(where)
    own = on_cells(teacher, batch, config.target_cells).values
    ours = on_cells(CachedTeacher(cache.open_cache(folder)), batch, config.target_cells).values
    own, ours = (values.transpose(0, 1).flatten(1).double() for values in (own, ours))
    deviation = own.std(1)
    together = ((own - own.mean(1, keepdim=True)) * (ours - ours.mean(1, keepdim=True))).mean(1)
    return {
        "crops": float(count),
        "correlation": float((together / (deviation * ours.std(1))).mean()),
        "difference": float(((own - ours).square().mean(1).sqrt() / deviation).mean()),
    }
