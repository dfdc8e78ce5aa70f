"""The cache of a teacher's latents: whole images once, crops cut from them ever after.

A folder that describes itself:

cache.json    which teacher, with which weights and settings, of which size; what its latents are
names.bin     8 bytes an image: a hash of its name, by which it is found (order and subsets of the data do not matter)
latents.bin   float16 [images, channels, rows, columns], read where it lies; not-a-number: the image cannot be read
stamps.bin    8 bytes an image: the bytes of its file, by which one that was replaced is noticed
parts.bin     8 bytes for each 64 images: done or not, and a checksum of their latents

The latent of a crop is cut out of its image's by RoI-align (He et al. 2017). A network sees more in the whole image
than in a crop of it, and may scale what it sees otherwise: `teach` measures by how much the two differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor
from torchvision.ops import roi_align

from depthjepa.data.contents import Contents
from depthjepa.data.pairing import some_of
from depthjepa.data.samples import Batch, Source
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Description, Zoomed
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.locks import is_free_of_files
from depthjepa.logbook import to_json, write_whole, writing
from depthjepa.losses import Latents

Say = Callable[[str], None]

FORMAT = 1
TOGETHER = 64  # images of a part: what is computed, checked and, after a kill, repeated together
DONE = 1
_SAMPLED = 64  # blocks of a file of weights that its fingerprint reads
_BLOCK = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands in `cache.json`. `made_of` decides whether a run may use the cache; the rest describes it."""

    made_of: Mapping[str, Any]  # teacher, fingerprints of its weights, its settings, size of the whole images [px]
    teacher: Mapping[str, Any]  # its `Description`
    data: str
    images: int
    shape: tuple[int, int, int]  # channels, rows, columns
    format: int = FORMAT
    together: int = TOGETHER  # images of a part
    crops: Mapping[str, float] | None = None  # how latents of crops differ from the teacher's own, once measured

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.images // self.together)


@dataclass(frozen=True)
class LatentCache:
    """The files of a cache, mapped into memory; `open_cache` makes one."""

    folder: Path
    facts: Facts
    latents: Float[np.ndarray, "images c rows cols"]
    names: UInt64[np.ndarray, " images"]
    stamps: Int64[np.ndarray, " images"] | None  # None: of an earlier version
    parts: UInt64[np.ndarray, " parts"]  # checksum x 2 + done
    _order: Int64[np.ndarray, " images"] = field(repr=False)
    _checked: np.ndarray = field(repr=False)

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
        for part in np.unique(rows // self.facts.together):
            self._check(int(part))
        return torch.from_numpy(self.latents[rows].astype(np.float32))

    def _check(self, part: int) -> None:
        """Compare a part with its checksum when it is first read: a file of a hundred GB is not read beforehand."""
        if self._checked[part]:
            return
        first = part * self.facts.together
        values = self.latents[first : first + self.facts.together]
        if checksum(values) << 1 | DONE != int(self.parts[part]):
            raise BadInput(
                f"the cache {self.folder} is damaged: images {first} to {first + len(values) - 1} "
                f"do not have the checksum that was written; compute it again"
            )
        self._checked[part] = True


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
        where = batch.images.device
        values = cut(self.cache.read(batch.names).to(where), batch.boxes, batch.mirrored, cells)
        values = seen_in_crops(values, batch.zoom.to(where), self.describe().zoomed)
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


# what a cache is made of ----------------------------------------------------------------------------------


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


# files ----------------------------------------------------------------------------------------------------


def refuse_other(folder: Path) -> None:
    """Refuse a folder that holds something else than a cache; raises `BadInput`."""
    there = (folder / "cache.json").exists() or not folder.exists()
    if not there and not (folder.is_dir() and is_free_of_files(folder)):
        raise BadInput(f"{folder} is there already and holds no cache: choose another folder")


def create_cache(
    folder: Path, facts: Facts, names: Sequence[str], stamps: Int64[np.ndarray, " images"], say: Say = lambda _: None
) -> None:
    """Make the files of a cache in which nothing is computed yet, or find those of the very same.

    `stamps`: see `data.contents.stamps_of`. Raises `BadInput` where another one is there, and where the disk has no
    room for it.
    """
    known = hashes(names)
    if (folder / "cache.json").exists():
        there = read_facts(folder)
        if differing := different(there.made_of, facts.made_of):
            raise BadInput(f"{folder} holds latents of another teacher or size: {differing}; choose another folder")
        before = _mapped(folder / "names.bin", np.uint64, (there.images,))
        if not np.array_equal(before, known):
            raise BadInput(
                f"{folder} holds latents of other images ({there.data}): {_renamed(before, known, names)}; choose "
                f"another folder"
            )
        if note := open_cache(folder, finished=False).refuse_other_images(names, stamps):
            say(note)
        return
    refuse_other(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        known.tofile(folder / "names.bin")
        stamps.tofile(folder / "stamps.bin")
        np.zeros(facts.parts, dtype=np.uint64).tofile(folder / "parts.bin")
        with (folder / "latents.bin").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_of(facts))  # a disk that is too small says so now
    write_whole(folder / "cache.json", to_json(asdict(facts)))  # last: with it the folder is a cache


def _renamed(before: UInt64[np.ndarray, " n"], now: UInt64[np.ndarray, " k"], names: Sequence[str]) -> str:
    """How many names are new, with some of them, and how many are gone: of those their hashes alone are known."""
    added = [names[index] for index in np.flatnonzero(~np.isin(now, before)).tolist()]
    removed = int((~np.isin(before, now)).sum())
    said = [f"{len(added)} added ({some_of(added)})"] * bool(added) + [f"{removed} removed"] * bool(removed)
    return ", ".join(said) or "in another order"


def open_cache(folder: Path, *, finished: bool = True, mode: str = "r") -> LatentCache:
    """Map a cache into memory; raises `BadInput` for what is no cache, truncated, or (if `finished`) incomplete."""
    facts = read_facts(folder)
    names = _mapped(folder / "names.bin", np.uint64, (facts.images,))
    parts = _mapped(folder / "parts.bin", np.uint64, (facts.parts,), mode)
    latents = _mapped(folder / "latents.bin", np.float16, (facts.images, *facts.shape), mode)
    if finished and (left := int((parts & DONE == 0).sum())):
        raise BadInput(
            f"the cache {folder} is not complete: {left} of {len(parts)} parts are to be computed yet; "
            f"run the same `depthjepa teach` again, it goes on where it stopped"
        )
    stamps = None
    if (folder / "stamps.bin").exists():
        stamps = _mapped(folder / "stamps.bin", np.int64, (facts.images,))
    order = np.argsort(names, kind="stable")
    return LatentCache(folder, facts, latents, names, stamps, parts, order, np.zeros(len(parts), dtype=bool))


def read_facts(folder: Path) -> Facts:
    """Read `cache.json`; raises `BadInput`."""
    file = folder / "cache.json"
    if not file.is_file():
        raise BadInput(f"{folder} is no cache of latents: cache.json is not there (`depthjepa teach` makes one)")
    try:
        content = json.loads(file.read_text())
        content["shape"] = tuple(content["shape"])
        facts = Facts(**content)
    except (ValueError, TypeError, KeyError) as fault:
        raise BadInput(f"{file} does not describe a cache of latents: {fault}") from fault
    if facts.format != FORMAT:
        raise BadInput(f"{folder} is a cache of format {facts.format}, this version reads {FORMAT}: compute it again")
    return facts


def different(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two caches are made of differently, in words; empty where they are the same."""
    keys = [key for key in dict.fromkeys((*there, *here)) if there.get(key) != here.get(key)]
    return ", ".join(f"{key}={there.get(key)} there and {here.get(key)} here" for key in keys)


def checksum(values: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def size_of(facts: Facts) -> int:
    """Bytes of `latents.bin`."""
    return 2 * facts.images * int(np.prod(facts.shape))


def _mapped(file: Path, dtype: Any, shape: tuple[int, ...], mode: str = "r") -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    found = file.stat().st_size if file.is_file() else 0
    if found != expected:
        raise BadInput(f"{file} has {found} of {expected} bytes: the cache is truncated, compute it again")
    return np.memmap(file, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload, no-any-return]
