"""From `data.*` keys to batches: which source, which views, in which order.

Every training batch is a pure function of (source, seed, step): crops, flips and masks are drawn by (seed,
epoch, sample index), so neither the number of workers nor that of processes, nor a resumed start, changes
what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as configuration
from torch.utils.data import Dataset

from depthjepa import runtime
from depthjepa.data.images import ClassFolder, FlatFolder, Split, is_flat_rgbd, layout_of
from depthjepa.data.layouts.rgbd import MILLIMETRES, PairedFolder
from depthjepa.data.layouts.scenes import Scenes
from depthjepa.data.layouts.shards import TarShards, shard_paths
from depthjepa.data.memory import first_readable, in_memory
from depthjepa.data.order import Mixture, draw_keys, epoch_order, evenly, steps_per_epoch, weighted_root
from depthjepa.data.reading import read
from depthjepa.data.samples import Batch, Sample, Source, UnreadableImage
from depthjepa.data.transforms import (
    CROP_NUMBERS,
    Size,
    View,
    centre_view,
    crop_box,
    flipped,
    relit,
    training_view,
    whole_view,
)
from depthjepa.faults import BadInput
from depthjepa.masks import Grid, MaskConfig, Masks, sample_masks

Positive = Annotated[int, Field(ge=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class DataConfig:
    """What is read, and how it is cropped.

    `root` is `scenes` or `scenes:SEED` (rendered streets), a class folder (`train/CLASS/*`, `val/CLASS/*`), a
    flat folder of images, an RGB-D folder (`train/rgb`, `train/depth`, `val/rgb`, `val/depth`, or `rgb`, `depth`), or
    a folder of tar shards (`train-*.tar`, `val-*.tar`) or one tar; or several of them, comma-separated, each with a
    weight if need be: `PATH*2,PATH*1`.

    `depth_scale` 1000 leaves the scale to an RGB-D folder's `dataset.json` where that says another; any other value is
    insisted on. `val_prefixes` and `val_list` divide RGB-D pairs that have no `val/`: the pairs that they name are
    validation data, all others training data.

    `light` varies training views alone. A teacher network sees them as they are lit; a cache of its latents was made
    of the photographs themselves.
    """

    kind: Literal["scenes", "folder", "rgbd", "shards"] | None = None  # None: told apart by what is in root
    root: str = "scenes"
    depth_scale: Annotated[float, Field(gt=0)] = MILLIMETRES  # file units per metre
    val_prefixes: tuple[str, ...] | None = None  # validation pairs by the beginnings of their IDs, as scene names are
    val_list: str | None = None  # the same from a text file: one ID, or beginning of IDs, a line
    image_size: Positive | tuple[Positive, Positive] = 224  # pixels; [height, width]
    classes: Positive | tuple[str, ...] | None = None  # the first N in sorted order, or the named ones
    images_per_class: Positive | None = None  # at most the first N of each, in train
    crop_scale: Range = (0.3, 1.0)  # shares of the image's area
    crop_ratio: Range = (3 / 4, 4 / 3)  # width / height of the crop against that of image_size (with depth: the image)
    flip: bool = False  # mirror one view in two
    light: Annotated[float, Field(ge=0, lt=1)] = 0.0  # brightness and contrast of a view times 1 - light to 1 + light
    workers: Annotated[int, Field(ge=0)] = 0  # processes that decode; 0: the main one
    memory_gib: Annotated[float, Field(ge=0)] = 2.0  # for decoded images of one size, in each rank; 0: keep none
    scenes_train: Positive = 4096
    scenes_val: Positive = 1024

    @field_validator("val_prefixes", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: int | tuple[str, ...] | None) -> int | tuple[str, ...] | None:
        if isinstance(value, tuple) and not 0 < len(value) == len(set(value)):
            raise ValueError("name at least one class, and each only once")
        return value

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not be larger than the second")
        return value

    @field_validator("crop_scale")
    @classmethod
    def _within_image(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop cannot be larger than the image: at most 1")
        return value

    @property
    def size(self) -> Size:
        """Height and width of what the model sees, in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def divides_pairs(self) -> bool:
        """Whether it says which RGB-D pairs are validation data."""
        return self.val_prefixes is not None or self.val_list is not None


# opening a source -----------------------------------------------------------------------------------------


def open_source(config: DataConfig, split: Split) -> Source:
    """Open what `data.root` names; raises `BadInput` for what is missing, empty or contradictory."""
    if not config.root:
        raise BadInput("data.root is empty: a checkpoint of another layout does not say its data; name them (--data)")
    parts = [weighted_root(part.strip()) for part in config.root.split(",")]
    sources = [_open_one(config, root, split) for root, _ in parts]
    for source in sources:
        if config.divides_pairs and not isinstance(source, PairedFolder):
            key = "val_prefixes" if config.val_list is None else "val_list"
            raise BadInput(f"data.{key} divides RGB-D pairs, but {source.name} is no RGB-D folder")
    if len(sources) == 1:
        return sources[0]
    weights = [weight for _, weight in parts]
    if all(weight is None for weight in weights):
        return Mixture(sources)
    return Mixture(sources, [1.0 if weight is None else weight for weight in weights])


def source_name(root: str) -> str:
    """The name that the source of a `data.root` bears, without opening it."""
    parts = [weighted_root(part.strip())[0] for part in root.split(",")]
    scenes = ((part, *part.partition(":")) for part in parts)
    return ",".join(
        f"scenes:{int(seed or 0)}" if word == "scenes" else str(Path(part).expanduser())
        for part, word, _, seed in scenes
    )


def knows_focal_lengths(source: Source) -> bool:
    """Whether the cameras of all depth of a source are known: only then are its metres those of any other camera."""
    if isinstance(source, Mixture):
        return all(map(knows_focal_lengths, source.sources))
    return isinstance(source, Scenes) or (isinstance(source, PairedFolder) and source.focal_length is not None)


def has_validation(config: DataConfig) -> bool:
    """Whether every root has validation data.

    Rendered scenes and flat folders of images always have, tar shards where they are named `val` or bear no split's
    name, RGB-D pairs where `data.val_prefixes` or `data.val_list` names some, and others in `val/`.
    """
    roots = [weighted_root(part.strip())[0] for part in config.root.split(",")]
    folders = [Path(root).expanduser() for root in roots if root.partition(":")[0] != "scenes"]
    return all(_folder_has_validation(config, folder) for folder in folders)


def _folder_has_validation(config: DataConfig, folder: Path) -> bool:
    layout = layout_of(folder)
    if config.kind == "shards" or (config.kind is None and layout == "shards"):
        return bool(shard_paths(folder, "val"))
    if layout == "rgbd" and (config.divides_pairs or is_flat_rgbd(folder)):
        return config.divides_pairs
    return layout == "flat" or (folder / "val").is_dir()


def _open_one(config: DataConfig, root: str, split: Split) -> Source:
    word, colon, seed = root.partition(":")
    if config.kind == "scenes" or (config.kind is None and word == "scenes"):
        if word != "scenes" or (colon and not seed.isdecimal()):
            raise BadInput(f"data.root={root!r} are no rendered scenes: write scenes or scenes:SEED, as in scenes:3")
        _refuse_subset(config, root, "rendered scenes")
        count = config.scenes_train if split == "train" else config.scenes_val
        return Scenes(int(seed or 0), split, count, config.size)
    folder = Path(root).expanduser()
    layout = layout_of(folder)
    if config.kind == "shards" or (config.kind is None and layout == "shards"):
        return TarShards(folder, split, config.classes, config.images_per_class)
    if config.kind == "rgbd" or layout == "rgbd":
        if config.kind == "folder":
            raise BadInput(f"data.kind=folder, but {folder} is an RGB-D folder: take data.kind=rgbd")
        _refuse_subset(config, root, "an RGB-D folder")
        return PairedFolder(
            folder, split, config.depth_scale, val_prefixes=config.val_prefixes, val_list=config.val_list
        )
    if layout == "shards":
        raise BadInput(f"data.kind=folder, but {folder} holds tar shards: take data.kind=shards")
    if layout == "classes":
        return ClassFolder(folder, split, config.classes, config.images_per_class)
    _refuse_subset(config, root, "a flat folder of images")
    return FlatFolder(folder, split)


def _refuse_subset(config: DataConfig, root: str, what: str) -> None:
    for key in ("classes", "images_per_class"):
        if getattr(config, key) is not None:
            raise BadInput(
                f"data.{key} needs a class folder (train/CLASS/*) or tar shards, but data.root={root} is {what}"
            )


# training -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    """One micro-batch: which draws of which epoch, and the step within it (the masks may want it)."""

    epoch: int
    step: int
    keys: Int64[np.ndarray, " b"]


@dataclass(frozen=True, kw_only=True)
class TrainingBatches:
    """The micro-batches of this process for steps `start_step` to `steps` - 1, `accumulate` for each step.

    `batch_size` is that of the whole step, over all processes and micro-batches. Step s of an epoch is
    positions s * batch_size and following of the epoch's order (`epoch_order`); the rest of an epoch is
    dropped. The union over processes and micro-batches is the same for any number of them (but masks of bias
    `reference` are cut to the shortest of a micro-batch, as the released code's are). An unreadable
    image is replaced by the next readable one and named in `Batch.skipped`. Where images are drawn more than once,
    all have one size and fit into `data.memory_gib`, they are decoded once, before the first batch, and kept: the
    batches are the same.

    Raises `BadInput` for a batch that cannot be divided, and while iterating for files at fault.
    """

    source: Source
    data: DataConfig
    masks: MaskConfig | None
    grid: Grid
    seed: int
    batch_size: int
    steps: int
    accumulate: int = 1
    ranks: runtime.Ranks = field(default_factory=runtime.Ranks)
    start_step: int = 0

    def __post_init__(self) -> None:
        parts = self.ranks.world * self.accumulate
        if self.batch_size < 1 or self.batch_size % parts:
            possible = max(1, round(self.batch_size / parts)) * parts
            raise BadInput(
                f"train.batch_size={self.batch_size} must be a multiple of processes x train.accumulate = "
                f"{self.ranks.world} x {self.accumulate} = {parts}: "
                f"take {possible}"
            )

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        draws = len(self) * self.batch_size // (self.ranks.world * self.accumulate)
        source = (
            in_memory(self.source, self.data.memory_gib, self.data.workers) if draws > len(self.source) else self.source
        )
        reader = _TrainingReader(source, self.data, self.masks, self.grid, self.seed)
        # Scenes are kept where they are rendered: each worker would render and keep them all.
        workers = 0 if isinstance(self.source, Scenes) else self.data.workers
        return read(reader, self._requests(), workers)

    def _requests(self) -> Iterator[_Request]:
        length = len(self.source)
        per_epoch = steps_per_epoch(length, self.batch_size)
        shape = (per_epoch, self.accumulate, self.ranks.world, -1)
        keys, drawn = np.empty(0), -1
        for epoch, step in (divmod(step, per_epoch) for step in range(self.start_step, self.steps)):
            if epoch != drawn:
                order = epoch_order(self.source, self.seed, epoch)
                keys, drawn = draw_keys(order, length, per_epoch * self.batch_size).reshape(shape), epoch
            for part in keys[step, :, self.ranks.rank]:
                yield _Request(epoch, step, part)


@dataclass(frozen=True, slots=True)
class _TrainingReader(Dataset[Batch | BadInput]):
    source: Source
    data: DataConfig
    masks: MaskConfig | None
    grid: Grid
    seed: int

    def __getitem__(self, request: _Request) -> Batch | BadInput:
        """Decode, crop and mask one micro-batch; a fault of the user comes back as a value (see `reading.read`)."""
        numbers = runtime.uniforms(
            CROP_NUMBERS, seed=self.seed, stream="crop", epoch=request.epoch, indices=request.keys
        )
        found: list[tuple[int, Sample, View]] = []
        skipped: list[str] = []
        try:
            for key, row in zip(request.keys, numbers, strict=True):
                index, sample, unreadable = first_readable(self.source, int(key) % len(self.source))
                found.append((index, sample, self._view(sample, row)))
                skipped += unreadable
            if self.data.light:
                found = self._relit(request, found)
            masks = self._masks(request)
        except BadInput as fault:
            return fault
        return _batch(found, self.data.size, self.source.has_depth, skipped, masks)

    def _view(self, sample: Sample, numbers: np.ndarray) -> View:
        full_height, full_width = sample.image.shape[1:]
        # Views of the whole image stretch it to image_size; with depth, crops are stretched alike.
        height, width = (full_height, full_width) if sample.depth is not None else self.data.size
        low, high = self.data.crop_ratio
        ratio = (low * width / height, high * width / height)
        box = crop_box(numbers, full_height, full_width, self.data.crop_scale, ratio)
        return training_view(sample, box, self.data.flip and flipped(numbers), self.data.size)

    def _relit(self, request: _Request, found: list[tuple[int, Sample, View]]) -> list[tuple[int, Sample, View]]:
        numbers = runtime.uniforms(2, seed=self.seed, stream="light", epoch=request.epoch, indices=request.keys)
        strength = self.data.light
        return [
            (index, sample, view._replace(image=relit(view.image, row, strength)))
            for (index, sample, view), row in zip(found, numbers, strict=True)
        ]

    def _masks(self, request: _Request) -> Masks | None:
        if self.masks is None:
            return None
        return sample_masks(
            self.masks,
            self.grid,
            seed=self.seed,
            epoch=request.epoch,
            indices=request.keys,
            batch_index=request.step,
        )


# fixed views ----------------------------------------------------------------------------------------------


def view_batches(
    source: Source,
    size: Size,
    *,
    view: Literal["whole", "centre"] = "whole",
    batch_size: int = 64,
    limit: int | None = None,
    workers: int = 0,
    may_be_empty: bool = False,
) -> Iterator[Batch]:
    """Yield the samples of a source in order, as fixed views without masks.

    `whole` resizes the whole image to `size` (height, width), `centre` its largest central part of those
    proportions. `limit` takes that many samples spread evenly over the source, so that sorted classes are all
    covered. Unreadable images are left out and named in `Batch.skipped`.

    Raises `BadInput` when no image can be read (unless that `may_be_empty`), or a file is at fault.
    """
    indices = evenly(len(source) if limit is None else limit, len(source))
    requests = (indices[first : first + batch_size] for first in range(0, len(indices), batch_size))
    skipped: tuple[str, ...] = ()
    held: Batch | None = None  # a batch waits for the next one, which may be empty and then only adds to `skipped`
    for batch in read(_ViewReader(source, size, view), requests, workers):
        if len(batch.index) == 0:
            skipped += batch.skipped
            continue
        if held is not None:
            yield replace(held, skipped=held.skipped + skipped)
            skipped = ()
        held = batch
    if held is None and may_be_empty:
        return
    if held is None:
        raise BadInput(f"none of the {len(indices)} images of {source.name} can be read; the first fault: {skipped[0]}")
    yield replace(held, skipped=held.skipped + skipped)


@dataclass(frozen=True, slots=True)
class _ViewReader(Dataset[Batch | BadInput]):
    source: Source
    size: Size
    view: Literal["whole", "centre"]

    def __getitem__(self, indices: Int64[np.ndarray, " b"]) -> Batch | BadInput:
        """Decode one batch of fixed views; a fault of the user comes back as a value (see `reading.read`)."""
        make = whole_view if self.view == "whole" else centre_view
        found: list[tuple[int, Sample, View]] = []
        skipped: list[str] = []
        for index in indices:
            try:
                sample = self.source.sample(int(index))
            except UnreadableImage as fault:
                skipped.append(str(fault))
            except BadInput as fault:
                return fault
            else:
                found.append((int(index), sample, make(sample, self.size)))
        return _batch(found, self.size, self.source.has_depth, skipped)


# reading --------------------------------------------------------------------------------------------------


def _batch(
    found: list[tuple[int, Sample, View]],
    size: Size,
    has_depth: bool,
    skipped: list[str],
    masks: Masks | None = None,
) -> Batch:
    pixels = torch.empty(len(found), 3, *size, dtype=torch.uint8)
    depth = torch.empty(len(found), 1, *size) if has_depth else None
    for place, (_, _, view) in enumerate(found):
        pixels[place] = view.image
        if depth is not None:
            assert view.depth is not None, "a source that has depth gave a sample without"
            depth[place] = view.depth
    return Batch(
        index=torch.tensor([index for index, _, _ in found], dtype=torch.int64),
        images=pixels.to(torch.float32).div_(255),
        depth=depth,
        zoom=torch.tensor([view.zoom for _, _, view in found], dtype=torch.float32),
        labels=torch.tensor([sample.label for _, sample, _ in found], dtype=torch.int64),
        masks=masks,
        boxes=torch.tensor([view.part for _, _, view in found], dtype=torch.float32).reshape(-1, 4),
        mirrored=torch.tensor([view.mirrored for _, _, view in found], dtype=torch.bool),
        names=tuple(sample.name for _, sample, _ in found),
        skipped=tuple(skipped),
    )
