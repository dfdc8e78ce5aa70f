"""Vision transformers as ours are: checkpoints of ours, and of every layout whose tensors can be renamed to ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthjepa.backbones.opening import Family, Source
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.run_config import RunConfig
from depthjepa.formats.weights import Which
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint as a backbone."""

    saved: Checkpoint

    @property
    def config(self) -> RunConfig:
        return self.saved.config

    @property
    def found(self) -> str:
        return f"layout {self.saved.layout}, holds {self.saved.holds}" if self.saved.holds else ""

    @property
    def assumed(self) -> tuple[str, ...]:
        return self.saved.assumed

    def which(self, wanted: Which) -> Which:
        return self.saved.which(wanted)

    def encoder(self, which: Which) -> VisionTransformer:
        return self.saved.encoder(which)

    def random(self, config: RunConfig) -> VisionTransformer:
        return build_encoder(config)


def _open(source: Source, settings: Sequence[str]) -> OpenedCheckpoint:
    return OpenedCheckpoint(load_checkpoint(source.name, settings))


FAMILY = Family(claims=lambda _: True, open=_open)
