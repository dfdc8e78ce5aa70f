"""The cache of a teacher's latents: whole images once, crops cut from them ever after.

A folder that describes itself:

cache.json        which teacher, with which weights and settings, of which size; what its latents are
names.bin         8 bytes an image: a hash of its name, by which it is found: order and subsets do not matter
stamps.bin        8 bytes an image: the bytes of its file, by which one that was replaced is noticed
parts/000123.bin  float16 [together, channels, rows, columns] of images that follow one another, read where they lie
                  (not-a-number: the image cannot be read), and 8 bytes: their checksum x 2 + 1
parts.bin         those 8 bytes of every part, written when all are there: with it the cache is complete

All files are written whole, and the first one stays; `cache.json` alone gets the comparison with the teacher at the
end. So any number of processes, on any machines that see the folder, compute parts without talking to each other (see
`shared_work`). Format 1, of earlier versions, had all latents in one file, `latents.bin`; it is read as ever.

The latent of a crop is cut out of its image's by RoI-align (He et al. 2017). A network sees more in the whole image
than in a crop of it, and may scale what it sees otherwise: `teach` measures by how much the two differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt64
from torch import Tensor
from torchvision.ops import roi_align

from depthjepa.data.contents import Contents
from depthjepa.data.pairing import some_of
from depthjepa.data.samples import Batch, Source
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Description, Zoomed
from depthjepa.guidance.teachers.cache_files import (
    LIST,
    Facts,
    lacking,
    mapped,
    mapped_part,
    read_facts,
    refuse_damaged,
)
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.locks import is_free_of_files
from depthjepa.logbook import to_json, write_new
from depthjepa.losses import Latents

Say = Callable[[str], None]

BEGINNING = ("names.bin", "stamps.bin")  # what is there before cache.json
MAPPED = 8192  # parts that a process has in memory at once; the system allows some 65 000 mapped files
_SAMPLED = 64  # blocks of a file of weights that its fingerprint reads
_BLOCK = 1 << 16  # bytes


@dataclass(frozen=True)
class LatentCache:
    """The files of a cache, mapped into memory; `open_cache` makes one."""

    folder: Path
    facts: Facts
    names: UInt64[np.ndarray, " images"]
    stamps: Int64[np.ndarray, " images"] | None  # None: of an earlier version
    parts: UInt64[np.ndarray, " parts"]  # checksum x 2 + done
    _order: Int64[np.ndarray, " images"] = field(repr=False)
    _checked: np.ndarray = field(repr=False)
    _single: Float16[np.ndarray, "images c rows cols"] | None = field(repr=False)  # all latents, of format 1
    _held: dict[int, np.ndarray] = field(repr=False, default_factory=dict)

    def rows(self, names: Sequence[str]) -> Int64[np.ndarray, " k"]:
        """Where the latents of named images are; raises `BadInput` for one that is not there."""
        wanted = hashes(names)
        places = np.searchsorted(self.names, wanted, sorter=self._order)
        rows: Int64[np.ndarray, " k"] = self._order[np.minimum(places, len(self._order) - 1)]
        if len(missing := np.flatnonzero(self.names[rows] != wanted)):
            raise BadInput(
                f"the cache {self.folder} lacks {len(missing)} of {len(names)} images, such as {names[missing[0]]}: "
                f"compute it for these data with `depthjepa teach`"
            )
        return rows

    def refuse_other_images(self, names: Sequence[str], stamps: Int64[np.ndarray, " k"]) -> str | None:
        """Raise `BadInput` where images that are there by name were others; say where that cannot be told."""
        rows = self.rows(names)
        if self.stamps is None:
            return f"of which files the cache {self.folder} was made is not known: it is of an earlier version"
        if len(changed := np.flatnonzero(self.stamps[rows] != stamps)):
            raise BadInput(
                f"the cache {self.folder} was made of other images: {len(changed)} of {len(names)} have another size "
                f"now ({some_of([names[index] for index in changed.tolist()])}); compute it for these data with "
                f"`depthjepa teach`"
            )
        return None

    def contents(self) -> Contents:
        """What tells this cache from others: teacher, names and checksums of latents, wherever it lies."""
        digest = hashlib.blake2b(json.dumps(self.facts.made_of, sort_keys=True).encode(), digest_size=16)
        digest.update(self.names.tobytes() + self.parts.tobytes())
        return Contents(self.facts.images, digest.hexdigest())

    def read(self, names: Sequence[str]) -> Float[Tensor, "k c rows cols"]:
        """Latents of named images, float32; raises `BadInput` for what is missing or damaged."""
        rows = self.rows(names)
        found = np.empty((len(rows), *self.facts.shape), dtype=np.float32)
        for number, row in enumerate(rows.tolist()):
            part, place = divmod(row, self.facts.together)
            found[number] = self.part(part)[place]
        return torch.from_numpy(found)

    def part(self, part: int) -> Float16[np.ndarray, "n c rows cols"]:
        """The latents of a part as they lie; raises `BadInput` where it is gone or damaged.

        It is compared with its checksum when it is first read: a cache of a hundred GB is not read beforehand.
        """
        values = self._held.get(part)
        if values is None:
            rows = self.facts.rows_of(part)
            if self._single is None:
                values = mapped_part(self.folder, self.facts, part)
            else:
                values = self._single[rows.start : rows.stop]
            if not self._checked[part]:
                refuse_damaged(self.folder, self.facts, part, values, int(self.parts[part]))
                self._checked[part] = True
            self._held[part] = values
            if len(self._held) > MAPPED:
                self._held.pop(next(iter(self._held)))  # the one that came first
        return values


class CachedTeacher:
    """A teacher that reads its latents from a cache: of the part of each whole image that a batch shows."""

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def describe(self) -> Description:
        return replace(Description(**self.cache.facts.teacher), cached_crops=self.cache.facts.crops)

    def to(self, device: torch.device) -> CachedTeacher:
        """Return the teacher as it is: latents are cut where the batch is."""
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        assert batch.boxes is not None and batch.mirrored is not None, "a batch of a source says what it shows"
        device = batch.images.device
        values = cut(self.cache.read(batch.names).to(device), batch.boxes, batch.mirrored, cells)
        values = seen_in_crops(values, batch.zoom.to(device), self.describe().zoomed)
        known = values.isfinite()
        return Latents(torch.where(known, values, 0.0), known)


def seen_in_crops(values: Float[Tensor, "b c rows cols"], zoom: Float[Tensor, " b"], zoomed: Zoomed) -> Tensor:
    """What latents of whole images are in crops of a zoom s, where all seems s times nearer (see `Batch`)."""
    scale = zoom[:, None, None, None]
    match zoomed:
        case "multiplied":
            return values * scale
        case "log added":
            return values + scale.log()
        case "unchanged":
            return values


def cut(
    whole: Float[Tensor, "b c rows cols"],
    boxes: Float[Tensor, "b 4"],
    mirrored: Tensor,
    cells: tuple[int, int],
) -> Float[Tensor, "b c {cells[0]} {cells[1]}"]:
    """Resample parts of maps, (top, left, height, width) as shares of their sides, to `cells`; mirror some of them."""
    rows, columns = whole.shape[-2:]
    top, left, height, width = boxes.to(whole).unbind(1)
    corners = torch.stack([left * columns, top * rows, (left + width) * columns, (top + height) * rows], 1)
    number = torch.arange(len(whole), device=whole.device, dtype=whole.dtype)[:, None]
    parts: Tensor = roi_align(whole, torch.cat([number, corners], 1), cells, aligned=True)
    return torch.where(mirrored[:, None, None, None], parts.flip(-1), parts)


def made_of(guidance: FeatureGuidance) -> dict[str, Any]:
    """All that the latents depend on beside the images: the teacher, its weights and settings, the size it sees."""
    kind = teacher_kind(guidance.teacher)
    settings = {key: getattr(guidance, key) for key in kind.settings}
    made = {"teacher": guidance.teacher, **fingerprints(guidance), **settings, "size": guidance.teacher_size}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}  # as JSON has it


def fingerprints(guidance: FeatureGuidance) -> dict[str, str]:
    """What tells the weights of a teacher from others, by their keys; empty where it has none or they are not named."""
    places = teacher_kind(guidance.teacher).weights(guidance)
    return {key: fingerprint(str(place)) for key, place in places.items() if place is not None}


def fingerprint(place: str) -> str:
    """Tell weights apart: a hash of sizes and of blocks spread over the files; of a hub id, the id itself.

    Raises `BadInput` for a folder without weights.
    """
    path = Path(place)
    if not path.exists():
        return place
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".safetensors", ".bin", ".ckpt", ".pt"))
        if not files:
            raise BadInput(f"{path} holds no weights (.safetensors, .bin, .ckpt, .pt)")
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for first in np.linspace(0, max(0, size - _BLOCK), _SAMPLED).astype(np.int64).tolist():
                content.seek(first)
                digest.update(content.read(_BLOCK))
    return digest.hexdigest()


def hashes(names: Sequence[str]) -> UInt64[np.ndarray, " k"]:
    """One number for each name: two names of a million have the same with a probability of 3e-8."""
    whole = (name.encode("utf-8", "surrogateescape") for name in names)
    return np.frombuffer(b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in whole), dtype=np.uint64)


def cached_teacher(guidance: FeatureGuidance) -> CachedTeacher:
    """Open the cache of a run; weights that are not named are taken for those it was made of. Raises `BadInput`."""
    cache = open_cache(Path(guidance.cache or ""))
    asked, there = made_of(guidance), dict(cache.facts.made_of)
    for key in ("teacher_checkpoint", "teacher_vae"):
        if key not in asked:
            there.pop(key, None)
    if differing := different(there, asked):
        raise BadInput(f"guidance.cache={guidance.cache} holds latents of another teacher or size: {differing}")
    return CachedTeacher(cache)


def names_of(source: Source) -> list[str]:
    """Names of all images of a source, in its order."""
    return [source.name_of(index) for index in range(len(source))]


def refuse_other(folder: Path) -> None:
    """Refuse a folder that holds something else than a cache, or the beginning of one; raises `BadInput`."""
    if (folder / "cache.json").exists() or not folder.exists():
        return
    if folder.is_dir() and is_free_of_files(folder, BEGINNING):
        return
    if not (folder / "cache.json").exists():  # another process may have made it one since the first look
        raise BadInput(f"{folder} is there already and holds no cache: choose another folder")


def create_cache(folder: Path, facts: Facts, names: Sequence[str], stamps: Int64[np.ndarray, " images"]) -> None:
    """Make a cache in which nothing is computed yet, where there is none; several may do so at once, one succeeds.

    Whether the one that is there then is the same, `refuse_other_cache` tells. `stamps`: see `data.contents.stamps_of`.
    Raises `BadInput` where the folder holds something else.
    """
    refuse_other(folder)
    for name, content in zip(BEGINNING, (hashes(names), stamps), strict=True):
        file = folder / name
        if write_new(file, content.tobytes()) or (folder / "cache.json").exists():
            continue
        if not np.array_equal(np.fromfile(file, dtype=content.dtype), content):  # left by a kill, or made right now
            raise BadInput(
                f"{folder} holds the beginning of a cache of other images ({name}): choose another folder, or remove "
                f"it if nobody works there"
            )
    write_new(folder / "cache.json", to_json(asdict(facts)).encode())  # last: with it the folder is a cache


def refuse_other_cache(
    folder: Path,
    made: Mapping[str, Any],
    names: Sequence[str],
    stamps: Int64[np.ndarray, " images"],
    say: Say = lambda _: None,
) -> None:
    """Raise `BadInput` where a cache was made of something else than `made` (see `made_of`), or of other images."""
    there, known = read_facts(folder), hashes(names)
    if differing := different(there.made_of, made):
        raise BadInput(f"{folder} holds latents of another teacher or size: {differing}; choose another folder")
    before = mapped(folder / "names.bin", np.uint64, (there.images,))
    if not np.array_equal(before, known):
        raise BadInput(
            f"{folder} holds latents of other images ({there.data}): {_renamed(before, known, names)}; choose "
            f"another folder"
        )
    if note := open_cache(folder, finished=False).refuse_other_images(names, stamps):
        say(note)


def _renamed(before: UInt64[np.ndarray, " n"], now: UInt64[np.ndarray, " k"], names: Sequence[str]) -> str:
    """How many names are new, with some of them, and how many are gone: of those their hashes alone are known."""
    added = [names[index] for index in np.flatnonzero(~np.isin(now, before)).tolist()]
    removed = int((~np.isin(before, now)).sum())
    said = [f"{len(added)} added ({some_of(added)})"] * bool(added) + [f"{removed} removed"] * bool(removed)
    return ", ".join(said) or "in another order"


def open_cache(folder: Path, *, finished: bool = True) -> LatentCache:
    """Map a cache into memory; raises `BadInput` for what is no cache, truncated, or (if `finished`) incomplete."""
    facts = read_facts(folder)
    names = mapped(folder / "names.bin", np.uint64, (facts.images,))
    single = mapped(folder / "latents.bin", np.float16, (facts.images, *facts.shape)) if facts.format == 1 else None
    if (left := lacking(folder, facts)) and finished:
        raise BadInput(
            f"the cache {folder} is not complete: {left}; run the same `depthjepa teach` again, it goes on where it "
            f"stopped"
        )
    listed = facts.format == 1 or not left
    parts = mapped(folder / LIST, np.uint64, (facts.parts,)) if listed else np.zeros(facts.parts, dtype=np.uint64)
    stamps = None
    if (folder / "stamps.bin").exists():
        stamps = mapped(folder / "stamps.bin", np.int64, (facts.images,))
    order = np.argsort(names, kind="stable")
    return LatentCache(folder, facts, names, stamps, parts, order, np.zeros(len(parts), dtype=bool), single)


def different(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two caches are made of differently, in words; empty where they are the same."""
    keys = [key for key in dict.fromkeys((*there, *here)) if there.get(key) != here.get(key)]
    return ", ".join(f"{key}={there.get(key)} there and {here.get(key)} here" for key in keys)
