"""What a layout that is written has to give, and what those of one encoder share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.data.transforms import Size
from depthjepa.formats.flat import facts_of
from depthjepa.formats.weights import Weights, Which
from depthjepa.model.vit import ModelConfig

OPTIMISER = "optimiser"


@dataclass(frozen=True, slots=True)
class WrittenLayout:
    """A layout: `write` writes a checkpoint to a new path, of one encoder `Which`, and says in words what it wrote.

    It raises `BadInput` for what the layout has no place for.
    """

    write: Callable[[Checkpoint, Path, Which], list[str]]


@dataclass(frozen=True, slots=True)
class OneEncoder:
    """One encoder of a checkpoint, to be written to a path, with the facts that its file keeps."""

    saved: Checkpoint
    which: Which
    target: Path

    @property
    def weights(self) -> Weights:
        """Its tensors by name."""
        return self.saved.part(f"{self.which}_encoder")

    @property
    def model(self) -> ModelConfig:
        """Its architecture."""
        return self.saved.config.model

    @property
    def size(self) -> Size:
        """Height and width of its images [px]."""
        return self.saved.config.data.size

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is written beside the weights."""
        return facts_of(self.which, self.model, self.size, self.saved.config.name, self.saved.step)


def of_one_encoder(name: str, write: Callable[[OneEncoder], list[str]]) -> WrittenLayout:
    """The layout `name`, which holds one encoder; `write` says in words what else is to be known."""

    def written(saved: Checkpoint, target: Path, which: Which) -> list[str]:
        encoder = OneEncoder(saved, saved.which(which), target)
        height, width = encoder.size
        seen = f"{encoder.model.shape.width} wide, {height} x {width} px"
        words = [f"{target}: layout {name}, the {encoder.which} encoder, {seen}"]
        if encoder.which != which:
            words.append(f"there is no {which} encoder in the source")
        words += write(encoder)
        if left := [what for what in held_by(saved) if what != f"{encoder.which} encoder"]:
            words.append(f"left out: {', '.join(left)}")
        return words

    return WrittenLayout(written)


def held_by(saved: Checkpoint) -> list[str]:
    """What a checkpoint holds, in words: its networks, the state of its optimiser, what is known of its teacher."""
    networks = sorted({key.split(".")[0].replace("_", " ") for key in saved.model})
    optimizer = bool(saved.optimizer) or "opt" in (saved.reference or {})
    return [*networks, *[OPTIMISER] * optimizer, *["teacher's statistics"] * (saved.whitening is not None)]
