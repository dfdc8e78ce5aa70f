"""Photographs with the depth that a teacher told of them, out of a cache: where nothing measured any.

What a readout of depth is fitted on need not be measured: a network's opinion of a thousand photographs fits one that
a few dozen laser scans can judge. The latents have to be metres: one of unknown scale has no like in measured depth.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.config import DataConfig
from depthjepa.data.groups import group_in
from depthjepa.data.loading import open_source
from depthjepa.data.samples import Sample, Source, UnreadableImage
from depthjepa.faults import BadInput
from depthjepa.guidance.target import CANONICAL
from depthjepa.guidance.teachers.cache import LatentCache, names_of, open_cache
from depthjepa.guidance.teachers.cache_files import read_facts


class TaughtDepth:
    """A source with a cache's depth [m] in the place of its own, resampled to the photographs."""

    keeps_samples = False
    has_depth = True
    knows_focal_length = False
    classes: tuple[str, ...] = ()

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.name = f"{source.name} ({read_facts(folder).teacher['name']})"

    def __reduce__(self) -> tuple[type[TaughtDepth], tuple[Source, Path]]:
        return TaughtDepth, (self.source, self.folder)  # a process maps the files itself

    @cached_property
    def cache(self) -> LatentCache:
        """The latents, mapped into memory."""
        return open_cache(self.folder)

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        """Name of photograph `index`."""
        return self.source.name_of(index)

    def group_of(self, index: int) -> str | None:
        """Where photograph `index` was taken."""
        return group_in(self.source, index)

    def sample(self, index: int) -> Sample:
        """Photograph `index` with the depth that was told of it; raises `UnreadableImage` where none was."""
        found = self.source.sample(index)
        latents = self.cache.read([found.name])
        if not latents.isfinite().any():
            raise UnreadableImage(f"{found.name}: {self.folder} has no latents of it")
        values = F.interpolate(latents, found.image.shape[-2:], mode="bilinear", align_corners=False)
        return replace(found, depth=metres(values[0], self.cache.facts.teacher["zoomed"]))


def is_metric(unit: str, zoomed: str) -> bool:
    """Whether latents of that unit say metres; those of a canonical camera need a focal length for it."""
    return zoomed != "unchanged" and not unit.endswith(CANONICAL)


def metres(values: Float[Tensor, "*b 1 h w"], zoomed: str) -> Float[Tensor, "*b 1 h w"]:
    """Latents of metric depth as metres, 0 = none: -log(depth / m), or 1/m (see `target.Description.zoomed`)."""
    found = (-values).exp() if zoomed == "log added" else torch.where(values > 0, 1 / values, 0.0)
    return torch.where(values.isfinite(), found, 0.0)


def open_taught(folder: Path, config: DataConfig) -> TaughtDepth:
    """The training photographs that a cache was made of, with the depth that it holds; `config` says how they are read.

    Raises `BadInput` where they are not there any more, and where the latents are no depth in metres.
    """
    facts = open_cache(folder).facts
    channels, unit = facts.shape[0], facts.teacher["unit"]
    if channels != 1 or not is_metric(unit, facts.teacher.get("zoomed", "unchanged")):
        raise BadInput(
            f"the cache {folder} holds {channels} channel(s) of {unit}, and a readout of metres takes depth in metres: "
            f"of a teacher that gives it (with guidance.teacher=onnx, guidance.teacher_unit=metres)"
        )
    source = open_source(config.elsewhere(facts.data), "train")
    open_cache(folder).rows(names_of(source))
    return TaughtDepth(source, folder)
