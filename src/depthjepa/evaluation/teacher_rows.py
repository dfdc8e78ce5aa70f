"""The teacher network of a guided run as rows of a depth table: what could be learned, beside what was.

A readout of its latents, fitted as those of encoders are, stands beside them on equal terms; where the latents are
metres, a further row is what the network says itself. The network sees what the run learned from: whole images of
`guidance.teacher_size` where that came from a cache, else the views that encoders see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from depthjepa.config.run_config import RunConfig
from depthjepa.data.groups import part_in
from depthjepa.data.loading import view_batches
from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch, Chosen, Source
from depthjepa.evaluation.depth_cells import Predict
from depthjepa.evaluation.features import OfBatch
from depthjepa.evaluation.gathering import Views
from depthjepa.evaluation.guidance import asked_teacher
from depthjepa.faults import BadInput
from depthjepa.grid import to_tokens
from depthjepa.guidance.build import asks_network
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Teacher, filled, on_cells, resized
from depthjepa.guidance.teachers.taught import is_metric, metres
from depthjepa.guidance.teachers.whole_images import latents_of_whole, of_one_size
from depthjepa.model.heads.head import CELLS

IMAGES = 500  # training images of each data set that the network is asked about: its latents have few channels
FARTHEST = 1000.0  # metres: an inverse depth of nothing and less is that far away
READ_OUT, ITSELF = "teacher", "teacher itself"  # rows


@dataclass(frozen=True, slots=True)
class TeacherRows:
    """Readouts with the images that they are fitted on, what predicts by itself, and what is to be said of them."""

    read: dict[str, tuple[OfBatch, Callable[[], Iterable[Batch]]]] = field(default_factory=dict)
    predictions: dict[str, Predict] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def sentences(self, rows: Sequence[Mapping[str, float | str]]) -> list[str]:
        """The remarks, and a warning where the teacher knows nothing of these images, once its figures are there."""
        best = max((float(row["r2_within"]) for row in rows if row["name"] in (READ_OUT, ITSELF)), default=1.0)
        poor = f"the teacher is no better than the mean map on these images (R² within images {best:.2f})"
        return [*self.remarks, *[f"{poor}: what it teaches of them is not depth"] * (best <= 0)]


def teacher_rows(config: RunConfig, train: Views, val: Views, device: torch.device) -> TeacherRows:
    """The rows of a run's teacher network on the images of a depth probe; none where no network guides."""
    if not (config.evaluation.teacher_row and asks_network(config.guidance)):
        return TeacherRows()
    assert isinstance(config.guidance, FeatureGuidance)
    try:
        teacher = asked_teacher(config, has_depth=True).to(device)
    except BadInput as fault:
        return TeacherRows(remarks=(f"the teacher is no row, since it cannot be asked ({fault})",))
    asked = _Asked(teacher, config, (train.source, val.source), device)
    some = torch.from_numpy(_some_of(train))

    def few() -> Iterator[Batch]:
        for batch in train.chosen(some):
            yield replace(batch, index=some[batch.index])  # their numbers among all

    def tokens(batch: Batch) -> Float[Tensor, "b n d"]:
        return to_tokens(F.pixel_unshuffle(asked(batch), CELLS))

    def itself(batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        return log_metres(asked(batch), described.zoomed)

    described = teacher.describe()
    metric = described.channels == 1 and is_metric(described.unit, described.zoomed)
    remark = f"the teacher's readout is fitted on {len(some)} of the training images"
    return TeacherRows(
        read={READ_OUT: (OfBatch(tokens), few)},
        predictions={ITSELF: itself} if metric else {},
        remarks=(remark,) if len(some) < len(train) else (),
    )


def log_metres(values: Float[Tensor, "b 1 rows cols"], zoomed: str) -> Float[Tensor, "b 1 rows cols"]:
    """Log depth [log m] of latents of metric depth; an inverse depth of 0 and less is far, not unknown."""
    return metres(values.clamp(min=1 / FARTHEST) if zoomed == "multiplied" else values, zoomed).log()


def _some_of(train: Views) -> Int64[np.ndarray, " some"]:
    """Numbers of an even spread over the training images of each data set, so that a small one has enough."""
    part = np.array([part_in(train.source, int(number)) for number in train.numbers])
    each = (train.numbers[part == of] for of in np.unique(part))
    return np.sort(np.concatenate([own[evenly(IMAGES, len(own))] for own in each]))


@dataclass(frozen=True)
class _Asked:
    """A teacher's latents of the images of a batch, on two cells a patch."""

    teacher: Teacher
    config: RunConfig
    sources: tuple[Source, Source]
    device: torch.device
    last: dict[tuple[str, ...], Tensor] = field(default_factory=dict)  # of the newest batch: two rows read it

    def __call__(self, batch: Batch) -> Float[Tensor, "b c rows cols"]:
        if batch.names not in self.last:
            self.last.clear()
            self.last[batch.names] = self._latents(batch)
        return self.last[batch.names]

    def _latents(self, batch: Batch) -> Float[Tensor, "b c rows cols"]:
        cells = CELLS * self.config.grid[0], CELLS * self.config.grid[1]
        guidance = self.config.guidance
        assert isinstance(guidance, FeatureGuidance)
        if guidance.cache is None:
            return filled(on_cells(self.teacher, batch.to(self.device), cells))
        found: dict[str, Tensor] = {}
        for source, numbers in self._places_of(batch.names):
            single = view_batches(Chosen(source, numbers), guidance.whole_size)
            for some in of_one_size(single, self.config.evaluation.batch_size):
                latents = filled(resized(latents_of_whole(self.teacher, some.to(self.device)), cells))
                found |= dict(zip(some.names, latents, strict=True))
        return torch.stack([found[name] for name in batch.names])

    def _places_of(self, names: Sequence[str]) -> Iterator[tuple[Source, Int64[np.ndarray, " _"]]]:
        for source, known in zip(self.sources, self._numbers, strict=True):
            if numbers := [known[name] for name in names if name in known]:
                yield source, np.array(numbers, dtype=np.int64)

    @cached_property
    def _numbers(self) -> list[dict[str, int]]:
        """Where each name is in either source; of equal names the first source's."""
        first, second = ({source.name_of(index): index for index in range(len(source))} for source in self.sources)
        return [first, {name: index for name, index in second.items() if name not in first}]
