"""What a data source gives (`Sample`, `Source`) and what a model gets (`Batch`).

Images are RGB: uint8 in a sample, float32 in [0, 1] in a batch. Depth is metres along the optical axis,
float32, 0 = invalid; it is never interpolated across invalid pixels. A label map holds the index of each pixel's class,
uint8, `VOID` = none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from depthjepa.masks import Masks

VOID = 255  # in a label map: no class, and no part of any figure


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded image of a source, with what is known about it."""

    image: UInt8[Tensor, "3 h w"]
    depth: Float[Tensor, "1 h w"] | None
    label: int  # -1: unknown
    name: str  # path below the source's root, or the scene's number
    label_map: UInt8[Tensor, "1 h w"] | None = None  # None: not there, or not asked for (see `Segmented`)
    normals: Float[Tensor, "3 h w"] | None = None  # as in `Batch`; only where they are asked for (`data.cameras`)


class UnreadableImage(Exception):
    """A file that cannot be decoded; the message names it and says why. The loader skips and counts it."""


@runtime_checkable
class Source(Protocol):
    """A finite, ordered collection of samples: a folder, rendered scenes, shards."""

    @property
    def name(self) -> str:
        """What the user asked for, for messages and reports."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty without labels."""
        ...

    @property
    def has_depth(self) -> bool: ...

    @property
    def knows_focal_length(self) -> bool:
        """Whether the cameras of all its depth are known: only then are its metres those of any other camera."""
        ...

    @property
    def keeps_samples(self) -> bool:
        """Whether the process that asks for samples keeps them: each worker process would make and keep them all."""
        ...

    def __len__(self) -> int: ...

    def name_of(self, index: int) -> str:
        """Name of sample `index`, as it bears it, without decoding it."""
        ...

    def sample(self, index: int) -> Sample:
        """Decode sample `index`; raises `UnreadableImage`."""
        ...


@runtime_checkable
class Stamped(Protocol):
    """A source that can tell its files from others of their names; one that cannot is known by the names alone."""

    def stamps(self) -> Int64[np.ndarray, "images numbers"]:
        """Numbers of each sample that change when what it is read from does, without reading it: sizes of files [byte].

        The first one is the image's; those of depth and labels follow.
        """


@runtime_checkable
class Windowed(Protocol):
    """A source whose samples are had by pieces of neighbours, so that an epoch should not jump about between all."""

    def pieces(self) -> Int64[np.ndarray, " images"] | None:
        """Number of the piece (0, 1, ...) of each sample; None: any sample is had as fast as its neighbour."""
        ...

    @property
    def window(self) -> int:
        """Pieces that are shuffled among themselves."""
        ...

    def for_few(self, indices: Int64[np.ndarray, " few"]) -> Source:
        """The same source, to read some samples only: whole pieces are not fetched for a sample of each."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that passed over some of what lies where its samples do."""

    @property
    def ignored(self) -> Mapping[str, int]:
        """How often what was passed over, in words, as `{".txt": 3}`."""
        ...


@runtime_checkable
class Segmented(Protocol):
    """A source that may have label maps. Training does not read them: they are asked for with a sample."""

    @property
    def segment_classes(self) -> tuple[str, ...]:
        """Names of the classes in label maps, in the order of their indices; empty without label maps."""
        ...

    def labelled_sample(self, index: int) -> Sample:
        """Decode sample `index` with its label map; raises what `Source.sample` raises, and `BadInput` for the map."""
        ...


def segment_classes(source: Source) -> tuple[str, ...]:
    """Names of the classes in the label maps of a source, in the order of their indices; empty where it has none."""
    return source.segment_classes if isinstance(source, Segmented) else ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one step with their masks.

    `boxes` are the parts of the whole images that are seen, (top, left, height, width) as shares of the whole one's
    sides, and `mirrored` tells which are seen in a mirror; both are None where a batch was not cut from a source.
    `zoom` is the linear magnification of the crop against the whole view (1 = whole view): an object of depth
    Z in a crop with zoom s looks as if it stood at Z / s, so `depth / zoom` is what the pixels can tell.
    `normals` are unit normals of the surfaces that are seen, in the frame of the camera (x right, y down, z forward),
    pointing to it, 0 = unknown; None where they were not asked for.
    """

    index: Int64[Tensor, " b"]
    images: Float[Tensor, "b 3 h w"]
    depth: Float[Tensor, "b 1 h w"] | None
    zoom: Float[Tensor, " b"]
    labels: Int64[Tensor, " b"]
    masks: Masks | None = None
    boxes: Float[Tensor, "b 4"] | None = None
    mirrored: Bool[Tensor, " b"] | None = None
    names: tuple[str, ...] = ()
    normals: Float[Tensor, "b 3 h w"] | None = None
    skipped: tuple[str, ...] = ()  # what could not be decoded, and why; training puts its successor in its place
    label_map: UInt8[Tensor, "b 1 h w"] | None = None  # `VOID`: no class; None: not there, or not asked for

    def pin_memory(self) -> Batch:
        """Pin what is large, so that it moves to a GPU without waiting; the loader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            depth=None if self.depth is None else self.depth.pin_memory(),
            normals=None if self.normals is None else self.normals.pin_memory(),
            label_map=None if self.label_map is None else self.label_map.pin_memory(),
        )

    def to(self, device: torch.device) -> Batch:
        """Move every tensor to a device, without waiting where the memory is pinned."""
        return replace(
            self,
            index=self.index.to(device, non_blocking=True),
            images=self.images.to(device, non_blocking=True),
            depth=None if self.depth is None else self.depth.to(device, non_blocking=True),
            zoom=self.zoom.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            masks=None if self.masks is None else self.masks.to(device),
            boxes=None if self.boxes is None else self.boxes.to(device, non_blocking=True),
            mirrored=None if self.mirrored is None else self.mirrored.to(device, non_blocking=True),
            normals=None if self.normals is None else self.normals.to(device, non_blocking=True),
            label_map=None if self.label_map is None else self.label_map.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class Derived:
    """What is made of another source has what that one has, but for its samples."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def has_depth(self) -> bool:
        return self.source.has_depth

    @property
    def knows_focal_length(self) -> bool:
        return self.source.knows_focal_length

    @property
    def keeps_samples(self) -> bool:
        return self.source.keeps_samples


@dataclass(frozen=True, slots=True)
class Chosen(Derived):
    """Some samples of a source, in a given order."""

    numbers: Int64[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.numbers)

    def name_of(self, index: int) -> str:
        return self.source.name_of(int(self.numbers[index]))

    def sample(self, index: int) -> Sample:
        return self.source.sample(int(self.numbers[index]))

    @property
    def segment_classes(self) -> tuple[str, ...]:
        return segment_classes(self.source)

    def labelled_sample(self, index: int) -> Sample:
        assert isinstance(self.source, Segmented)
        return self.source.labelled_sample(int(self.numbers[index]))
