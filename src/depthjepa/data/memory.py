"""Images of one size, decoded once and kept: batches are the same, four times as fast from small JPEGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from depthjepa.data.reading import FAULTS, Fault, read
from depthjepa.data.samples import Sample, Source, UnreadableImage
from depthjepa.faults import BadInput
from depthjepa.progress import track

_DECODED_TOGETHER = 64  # images that a worker decodes in one go


class Kept:
    """A source without depth whose images all have one size, decoded once: it gives the very samples of the source.

    Worker processes read the same memory: forked ones as it is, since nothing is written to it any more, and spawned
    ones through torch, which moves a tensor into shared memory when it is handed over.
    """

    has_depth = False
    keeps_samples = False  # workers read what is kept

    def __init__(
        self,
        source: Source,
        images: UInt8[Tensor, "n h w 3"],  # colours side by side, as decoders give them: the views are the same
        labels: Int64[Tensor, " n"],
        names: Sequence[str],
        unreadable: Mapping[int, str],  # the fault of each image that cannot be decoded
    ) -> None:
        self.name, self.classes = source.name, source.classes
        self.knows_focal_length = source.knows_focal_length
        self._images, self._labels, self._unreadable = images, labels, unreadable
        self._names = np.array(names)  # one array: workers share it, where a list would be copied page by page

    def __len__(self) -> int:
        return len(self._images)

    def name_of(self, index: int) -> str:
        """Name of sample `index`."""
        return str(self._names[index])

    def sample(self, index: int) -> Sample:
        """Return sample `index`; raises `UnreadableImage` as the source did."""
        if index in self._unreadable:
            raise UnreadableImage(self._unreadable[index])
        image = self._images[index].permute(2, 0, 1)
        return Sample(image=image, depth=None, label=int(self._labels[index]), name=self.name_of(index))


def in_memory(source: Source, gibibytes: float, workers: int) -> Source:
    """The source with its images decoded, where they have one size and fit into the memory; else itself."""
    found = _room(source, gibibytes)
    if found is None:
        return source
    count, (height, width) = len(source), found
    images = torch.empty(count, height, width, 3, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    names: list[str] = []
    unreadable: dict[int, str] = {}
    requests = (range(first, min(first + _DECODED_TOGETHER, count)) for first in range(0, count, _DECODED_TOGETHER))
    parts = read(_Decoder(source, height, width), requests, workers)
    for part in track(parts, f"decoding {count} images of {source.name}", -(-count // _DECODED_TOGETHER)):
        if part.images is None:
            return source
        places = slice(len(names), len(names) + len(part.names))
        images[places], labels[places] = part.images, part.labels
        names += part.names
        unreadable |= part.unreadable
    return Kept(source, images, labels, names, unreadable)


def kept_bytes(source: Source, gibibytes: float) -> int:
    """Bytes of the samples that a process keeps while it trains: those that `in_memory` decodes, or rendered ones."""
    if source.keeps_samples:
        sample = source.sample(0)
        return len(source) * (sample.image.nbytes + (0 if sample.depth is None else sample.depth.nbytes))
    found = _room(source, gibibytes)
    return 0 if found is None else len(source) * 3 * found[0] * found[1]


def _room(source: Source, gibibytes: float) -> tuple[int, int] | None:
    """Height and width of the first image, where images like it are to be kept and fit into the memory."""
    if not gibibytes or source.has_depth:
        return None
    _, sample, _ = first_readable(source, 0)
    _, height, width = sample.image.shape
    return (height, width) if len(source) * height * width * 3 <= gibibytes * 2**30 else None


@dataclass(frozen=True, slots=True)
class _Decoded:
    images: UInt8[Tensor, "k h w 3"] | None  # None: one has another size
    labels: Int64[Tensor, " k"]
    names: list[str]
    unreadable: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Decoder(Dataset[_Decoded | Fault]):
    source: Source
    height: int
    width: int

    def __getitem__(self, indices: range) -> _Decoded | Fault:
        """Decode neighbours of a source; a fault of the user comes back as a value (see `reading.read`)."""
        images = torch.empty(len(indices), self.height, self.width, 3, dtype=torch.uint8)
        labels = torch.full((len(indices),), -1)
        names = [""] * len(indices)
        unreadable: dict[int, str] = {}
        for place, index in enumerate(indices):
            try:
                sample = self.source.sample(index)
            except UnreadableImage as fault:
                unreadable[index] = str(fault)
            except FAULTS as fault:
                return fault
            else:
                if sample.image.shape != (3, self.height, self.width):
                    return _Decoded(None, labels, names, unreadable)
                images[place] = sample.image.permute(1, 2, 0)
                labels[place], names[place] = sample.label, sample.name
        return _Decoded(images, labels, names, unreadable)


def first_readable(source: Source, index: int) -> tuple[int, Sample, list[str]]:
    """Decode sample `index` or, where it is unreadable, the next that is not; say what was passed over."""
    skipped: list[str] = []
    for place in range(index, index + len(source)):
        try:
            return place % len(source), source.sample(place % len(source)), skipped
        except UnreadableImage as fault:
            skipped.append(str(fault))
    raise BadInput(f"none of the {len(source)} images of {source.name} can be read; the first fault: {skipped[0]}")
