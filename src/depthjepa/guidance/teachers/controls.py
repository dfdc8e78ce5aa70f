"""Controls: targets of a teacher's own shape that say nothing of the image's depth.

A guided run that beats its unguided twin may owe it to having a dense target at all. What depth itself did shows beside
twins that differ in the target alone, with the same head, weight and cells:

image     the image itself, told as the teacher tells depth: DepthFM's latent of the picture; else luminance
random    what a small frozen network of random weights makes of the image
another   the teacher's latents of another image of the batch, which is put together anew each epoch: of these only the
          mean map can be learned
mean      the mean map of the batch, less the mean of each channel

Whitening, fitted on the control's own targets, gives all of them the teacher's mean and variance: 0 and 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.target import Description, Teacher, luminance, on_cells
from depthjepa.losses import Latents

NONE = "none"
RANDOM_WIDTH = 32  # of the random network; twice that before its output
PIXELS = 4  # of the image, along a cell, that the random network sees


@runtime_checkable
class TellsPictures(Protocol):
    """A teacher that may be able to tell the image itself in the way in which it tells depth."""

    @property
    def has_picture(self) -> bool:
        """Whether it is: features have no like of the image."""
        ...

    def picture(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """The image as latents at about `cells` (rows, columns)."""
        ...


def build_control(teacher: Teacher, control: str, seed: int) -> Teacher:
    """Put a control in the teacher's place, `none`: the teacher itself.

    Raises `BadInput` where a teacher has no picture of its own kind to give instead of depth.
    """
    return teacher if control == NONE else CONTROLS[control](teacher, seed)


def build_controls(teacher: Teacher, control: str, beside: str, seed: int) -> Teacher:
    """Put one control in the teacher's place, and another one beside it (`none`: neither)."""
    first = build_control(teacher, control, seed)
    return first if beside == NONE else SideBySide(first, build_control(teacher, beside, seed))


class Control(ABC):
    """What stands in a teacher's place. It is described as the teacher is, but for its name."""

    of_depth: ClassVar[bool] = False  # whether it tells depth, though not the image's own

    def __init__(self, teacher: Teacher, seed: int = 0) -> None:
        self.teacher = teacher

    @abstractmethod
    def describe(self) -> Description: ...

    @abstractmethod
    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """Latents in the place of the teacher's."""

    def to(self, device: torch.device) -> Control:
        """Move the networks; returns the control itself."""
        self.teacher = self.teacher.to(device)
        return self


class ImageItself(Control):
    """The image where the teacher tells depth; the same cells count."""

    def __init__(self, teacher: Teacher, seed: int = 0) -> None:
        super().__init__(teacher, seed)
        if teacher.describe().channels != 1 and not _has_picture(teacher):
            raise BadInput(
                f"guidance.control=image: {teacher.describe().name} gives features or cached latents, which have no "
                f"like of the image; take another control, the teacher's depth, or no guidance.cache"
            )

    def describe(self) -> Description:
        return replace(self.teacher.describe(), name=f"image as {self.teacher.describe().name}", unit="brightness")

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        if isinstance(self.teacher, TellsPictures) and self.teacher.has_picture:
            return self.teacher.picture(batch, cells)
        values = F.adaptive_avg_pool2d(luminance(batch.images), cells)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))


def _has_picture(teacher: Teacher) -> bool:
    return isinstance(teacher, TellsPictures) and teacher.has_picture


class RandomNetwork(Control):
    """Three random convolutions over four pixels a cell; the cells count that the depth teacher would give."""

    def __init__(self, teacher: Teacher, seed: int = 0) -> None:
        super().__init__(teacher, seed)
        widths = (3, RANDOM_WIDTH, 2 * RANDOM_WIDTH, teacher.describe().channels)
        with runtime.seeded(seed, "random teacher"):
            first = nn.Conv2d(widths[0], widths[1], 3, padding=1, padding_mode="reflect")
            second, third = (
                nn.Conv2d(width, following, 4, stride=2, padding=1, padding_mode="reflect")
                for width, following in pairwise(widths[1:])
            )
            for layer in (first, second, third):
                nn.init.kaiming_normal_(layer.weight)
        self.network = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)
        self.network.requires_grad_(False)

    def describe(self) -> Description:
        return replace(self.teacher.describe(), name="random network", unit="none", direction="undirected")

    def to(self, device: torch.device) -> Control:
        """Move both networks; returns the control itself."""
        self.network.to(device)
        return super().to(device)

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        size = PIXELS * cells[0], PIXELS * cells[1]
        images = F.interpolate(batch.images, size, mode="bilinear", antialias=True, align_corners=False)
        with torch.autocast(images.device.type, enabled=False):
            values: Float[Tensor, "b c rows cols"] = self.network(images.float() * 2 - 1)
        if self.teacher.describe().needs_depth:
            return Latents(values, self.teacher.batch_latents(batch, cells).valid)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))


class AnotherImage(Control):
    """Each image gets the latents of its neighbour in the batch."""

    of_depth = True

    def describe(self) -> Description:
        return replace(self.teacher.describe(), name=f"{self.teacher.describe().name} of another image")

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        own = self.teacher.batch_latents(batch, cells)
        if len(own.values) < 2:
            raise BadInput("guidance.control=another needs batches of at least two images: raise train.batch_size")
        return Latents(own.values.roll(1, 0), own.valid.roll(1, 0))


class MeanMap(Control):
    """Each image gets the mean of the batch; a cell counts where an image of the batch knows it."""

    of_depth = True

    def describe(self) -> Description:
        return replace(self.teacher.describe(), name=f"mean map of {self.teacher.describe().name}")

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        own = self.teacher.batch_latents(batch, cells)
        known = own.valid.expand_as(own.values)
        count = known.sum(0, keepdim=True)
        mean = torch.where(known, own.values, 0.0).sum(0, keepdim=True) / count.clamp(min=1)
        return Latents(mean.expand_as(own.values), (count > 0).expand_as(own.values))


class SideBySide:
    """Two teachers of equally many channels as one: the channels of the first, then those of the second."""

    def __init__(self, first: Teacher, second: Teacher) -> None:
        self.first, self.second = first, second

    def describe(self) -> Description:
        one, other = self.first.describe(), self.second.describe()
        return replace(one, name=f"{one.name} beside {other.name}", channels=one.channels + other.channels)

    def to(self, device: torch.device) -> SideBySide:
        """Move the networks of both; returns itself."""
        self.first, self.second = self.first.to(device), self.second.to(device)
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        found = [on_cells(each, batch, cells) for each in (self.first, self.second)]
        valid = [each.valid.expand_as(each.values) for each in found]
        return Latents(torch.cat([each.values for each in found], 1), torch.cat(valid, 1))


CONTROLS: dict[str, type[Control]] = {
    "image": ImageItself,
    "random": RandomNetwork,
    "another": AnotherImage,
    "mean": MeanMap,
}
