"""From `data.*` keys to batches: which source, which views, in which order.

Every training batch is a pure function of (source, seed, step): crops, flips and masks are drawn by (seed,
epoch, sample index), so neither the number of workers nor that of processes, nor a resumed start, changes
what is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from depthjepa import distributed, runtime
from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split
from depthjepa.data.kept_folders import kept
from depthjepa.data.layouts.layout import (
    DataLayout,
    layout_of,
    name_of_root,
    open_root,
    path_of,
    takes_textures,
)
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.data.memory import first_readable, in_memory
from depthjepa.data.order import Mixture, draw_keys, epoch_order, evenly, steps_per_epoch, weighted_roots
from depthjepa.data.reading import FAULTS, Fault, read
from depthjepa.data.samples import Batch, Chosen, Sample, Segmented, Source, UnreadableImage, Windowed
from depthjepa.data.scenes.photographs import covered_name, digest_of
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
from depthjepa.progress import task


def open_source(config: DataConfig, split: Split) -> Source:
    """Open what `data.root` names; raises `BadInput` for what is missing, empty or contradictory."""
    parts = _parts(config)
    with kept(*(path_of(root) for root, _ in parts)):
        return _opened(config, parts, [layout_of(config, root) for root, _ in parts], split)


def open_splits(config: DataConfig) -> dict[Split, Source]:
    """Open the training data, and the validation data where there are any: listing a large folder takes a while."""
    parts = _parts(config)
    with kept(*(path_of(root) for root, _ in parts)):
        layouts = [layout_of(config, root) for root, _ in parts]
        found: dict[Split, Source] = {"train": _opened(config, parts, layouts, "train")}
        if all(layout.has_validation(config, root) for (root, _), layout in zip(parts, layouts, strict=True)):
            found["val"] = _opened(config, parts, layouts, "val")
        return found


def _parts(config: DataConfig) -> list[tuple[str, float | None]]:
    if not config.root:
        raise BadInput(f"data.root is empty: say which data (data.root=, or --data): {LAYOUTS.listed()}")
    return weighted_roots(config.root)


def _opened(
    config: DataConfig, parts: Sequence[tuple[str, float | None]], layouts: Sequence[DataLayout], split: Split
) -> Source:
    sources = [open_root(config, root, layout, split) for (root, _), layout in zip(parts, layouts, strict=True)]
    if len(sources) == 1:
        return sources[0]
    weights = [weight for _, weight in parts]
    if all(weight is None for weight in weights):
        return Mixture(sources)
    return Mixture(sources, [1.0 if weight is None else weight for weight in weights])


def source_name(root: str, textures: str | None = None) -> str:
    """The name that the source of a `data.root` bears, without opening it; `textures` are photographs on scenes."""
    names = ((part, name_of_root(part)) for part, _ in weighted_roots(root))
    digest = "" if textures is None else digest_of(textures)
    return ",".join(covered_name(name, digest) if takes_textures(part) else name for part, name in names)


def has_validation(config: DataConfig) -> bool:
    """Whether every root has validation data; each layout says what that takes."""
    roots = [root for root, _ in weighted_roots(config.root)]
    with kept(*map(path_of, roots)):
        return all(layout_of(config, root).has_validation(config, root) for root in roots)


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
    ranks: distributed.Ranks = field(default_factory=distributed.Ranks)
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
        yield from read(reader, self._requests(), 0 if self.source.keeps_samples else self.data.workers)

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
class _TrainingReader(Dataset[Batch | Fault]):
    source: Source
    data: DataConfig
    masks: MaskConfig | None
    grid: Grid
    seed: int

    def __getitem__(self, request: _Request) -> Batch | Fault:
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
        except FAULTS as fault:
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


def view_batches(
    source: Source,
    size: Size | Callable[[int, int], Size],
    *,
    view: Literal["whole", "centre"] = "whole",
    batch_size: int = 64,
    limit: int | None = None,
    places: Sequence[int] | None = None,
    label_maps: bool = False,
    workers: int = 0,
    may_be_empty: bool = False,
) -> Iterator[Batch]:
    """Yield the samples of a source in order, as fixed views without masks.

    `whole` resizes the whole image to `size` (height, width), `centre` its largest central part of those
    proportions. Where the size depends on the image's own (height, width), a batch is a single image. `limit` takes
    that many samples spread evenly over the source, so that sorted classes are all covered; `places` takes these
    samples. Unreadable images are left out and named in `Batch.skipped`. `label_maps` reads them as well, of a source
    that has them. Where no image can be read and that `may_be_empty`, one batch without images names them all.

    Raises `BadInput` when no image can be read (unless that `may_be_empty`), or a file is at fault.
    """
    indices = evenly(len(source) if limit is None else limit, len(source)) if places is None else np.array(places)
    source = _for_few(source, indices)
    batch_size = 1 if callable(size) else batch_size
    requests = (indices[first : first + batch_size] for first in range(0, len(indices), batch_size))
    skipped: tuple[str, ...] = ()
    held: Batch | None = None  # a batch waits for the next one, which may be empty and then only adds to `skipped`
    with task(f"images of {source.name}", len(indices)) as shown:
        for batch in read(_ViewReader(source, size, view, label_maps), requests, workers):
            shown.done += len(batch.index) + len(batch.skipped)
            if len(batch.index) == 0:
                skipped += batch.skipped
                continue
            if held is not None:
                yield replace(held, skipped=held.skipped + skipped)
                skipped = ()
            held = batch
    if held is not None:
        yield replace(held, skipped=held.skipped + skipped)
    elif not may_be_empty:
        raise BadInput(f"none of the {len(indices)} images of {source.name} can be read; the first fault: {skipped[0]}")
    elif skipped:
        yield replace(batch, skipped=skipped)


def _for_few(source: Source, indices: Int64[np.ndarray, " b"]) -> Source:
    if isinstance(source, Chosen):
        return replace(source, source=_for_few(source.source, source.numbers[indices]))
    return source.for_few(indices) if isinstance(source, Windowed) else source


@dataclass(frozen=True, slots=True)
class _ViewReader(Dataset[Batch | Fault]):
    source: Source
    size: Size | Callable[[int, int], Size]
    view: Literal["whole", "centre"]
    label_maps: bool

    def __getitem__(self, indices: Int64[np.ndarray, " b"]) -> Batch | Fault:
        """Decode one batch of fixed views; a fault of the user comes back as a value (see `reading.read`)."""
        make = whole_view if self.view == "whole" else centre_view
        found: list[tuple[int, Sample, View]] = []
        skipped: list[str] = []
        size = (0, 0) if callable(self.size) else self.size
        for index in indices:
            try:
                sample = self._sample(int(index))
            except UnreadableImage as fault:
                skipped.append(str(fault))
            except FAULTS as fault:
                return fault
            else:
                if callable(self.size):
                    size = self.size(*sample.image.shape[1:])
                found.append((int(index), sample, make(sample, size)))
        return _batch(found, size, self.source.has_depth, skipped, label_maps=self.label_maps)

    def _sample(self, index: int) -> Sample:
        if not self.label_maps:
            return self.source.sample(index)
        assert isinstance(self.source, Segmented), "label maps are asked for of a source that has none"
        return self.source.labelled_sample(index)


def _batch(
    found: list[tuple[int, Sample, View]],
    size: Size,
    has_depth: bool,
    skipped: list[str],
    masks: Masks | None = None,
    *,
    label_maps: bool = False,
) -> Batch:
    pixels = torch.empty(len(found), 3, *size, dtype=torch.uint8)
    depth = torch.empty(len(found), 1, *size) if has_depth else None
    maps = torch.empty(len(found), 1, *size, dtype=torch.uint8) if label_maps else None
    for place, (_, _, view) in enumerate(found):
        pixels[place] = view.image
        if depth is not None:
            assert view.depth is not None, "a source that has depth gave a sample without"
            depth[place] = view.depth
        if maps is not None:
            assert view.label_map is not None, "a source that has label maps gave a sample without"
            maps[place] = view.label_map
    normals = [view.normals for _, _, view in found if view.normals is not None]
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
        normals=torch.stack(normals) if normals else None,
        skipped=tuple(skipped),
        label_map=maps,
    )
