"""What a teacher says of whole images, at the size that it is to see them at (`guidance.teacher_size`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import torch

from depthjepa.data.samples import Batch
from depthjepa.guidance.target import CELL, Teacher, resized
from depthjepa.losses import Latents


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


def latents_of_whole(teacher: Teacher, batch: Batch) -> Latents:
    """Latents of whole images, no finer than a cell: a network that answers pixel by pixel would fill the disk."""
    cells = max(1, batch.images.shape[-2] // CELL), max(1, batch.images.shape[-1] // CELL)
    latents = teacher.batch_latents(batch, cells)
    rows, columns = latents.values.shape[-2:]
    return resized(latents, cells) if rows > cells[0] or columns > cells[1] else latents
