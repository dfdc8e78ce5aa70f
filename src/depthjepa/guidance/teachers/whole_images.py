"""What a teacher says of whole images, at the size that it is to see them at (`guidance.teacher_size`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.guidance.target import Teacher

CELL = 8  # pixels of the whole image a latent cell is asked for


def of_one_size(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Put single images that follow each other and have one size together, for a network: it sees nothing else."""
    for _, same in groupby(batches, key=lambda batch: batch.images.shape[-2:]):
        while some := tuple(islice(same, most)):
            yield Batch(
                index=torch.cat([each.index for each in some]),
                images=torch.cat([each.images for each in some]),
                depth=None,
                zoom=torch.cat([each.zoom for each in some]),
                labels=torch.cat([each.labels for each in some]),
                names=tuple(name for each in some for name in each.names),
            )


def latents_of_whole(teacher: Teacher, batch: Batch) -> Float[Tensor, "b c rows cols"]:
    """Latents of whole images, no finer than a cell: a network that answers pixel by pixel would fill the disk."""
    cells = max(1, batch.images.shape[-2] // CELL), max(1, batch.images.shape[-1] // CELL)
    return resampled(teacher.batch_latents(batch, cells).values, cells, only_down=True)


def resampled(
    values: Float[Tensor, "b c _rows _cols"], cells: tuple[int, int], *, only_down: bool = False
) -> Float[Tensor, "b c rows cols"]:
    """Latents on other cells; if `only_down`, those that are no finer stay as they are."""
    rows, columns = values.shape[-2:]
    if (rows, columns) == cells or (only_down and rows <= cells[0] and columns <= cells[1]):
        return values
    return F.interpolate(values, cells, mode="bilinear", antialias=True, align_corners=False)
