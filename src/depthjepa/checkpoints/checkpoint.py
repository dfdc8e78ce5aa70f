"""Checkpoints: whole or absent, and enough to go on with exactly the same run.

A file of ours holds tensors and plain values only, so it is read with `weights_only=True`: the networks, the
optimiser, the step, the configuration, the class names and the teacher's whitening. Runs whose networks are sharded
keep the same in `parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.formats.weights import Weights, Which, assemble
from depthjepa.guidance.target import Whitening
from depthjepa.logbook import whole_file
from depthjepa.model.vit import VisionTransformer

FORMAT = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds, under the names of our networks (`context_encoder.`, `target_encoder.`, …).

    `layout` is `depthjepa` or a foreign one; of those, `holds` says what was found and `assumed` what was not said.
    `reference` keeps what only the reference's layout knows (of a file of that layout its whole training state), so
    that it can be written back as it was.
    """

    step: int
    epoch: float  # completed ones
    config: RunConfig
    classes: tuple[str, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    whitening: Whitening | None
    floor: float | None
    skipped: tuple[str, ...]
    path: Path
    lost: tuple[str, ...] = ()  # what the run asked for and this version no longer has, as KEY=VALUE
    layout: str = "depthjepa"
    holds: str = ""
    assumed: tuple[str, ...] = ()
    reference: dict[str, Any] | None = None

    @property
    def run(self) -> Path | None:
        """The run folder that the file lies in, None outside one."""
        folder = self.path.parent.parent
        inside = self.path.parent.name == "checkpoints" and (folder / "config.yaml").is_file()
        return folder if inside else None

    def which(self, wanted: Which = "target") -> Which:
        """The encoder that stands for the wanted one: where a file holds one encoder only, it serves as both."""
        held = {key.partition("_encoder.")[0] for key in self.model}
        order: tuple[Which, ...] = (wanted, "target", "context", "single")
        return next(which for which in order if which in held)

    def part(self, name: str) -> Weights:
        """Tensors of one network, without its prefix; empty where the file does not hold it."""
        return {key.removeprefix(f"{name}."): value for key, value in self.model.items() if key.startswith(f"{name}.")}

    def encoder(self, which: Which = "target") -> VisionTransformer:
        """Build one encoder around its weights, in eval mode."""
        weights = self.part(f"{self.which(which)}_encoder")
        return assemble(self.config.model, self.config.grid, weights, self.path)


def content(
    *,
    step: int,
    epoch: float,
    config: RunConfig,
    classes: tuple[str, ...],
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    whitening: Whitening | None,
    floor: float | None,
    skipped: tuple[str, ...],
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint of ours holds, as it is written; `model` and `optimizer` are state dictionaries."""
    return {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "config": to_mapping(config),
        "classes": list(classes),
        "model": dict(model),
        "optimizer": dict(optimizer),
        "whitening": None if whitening is None else {"mean": whitening.mean, "deviation": whitening.deviation},
        "floor": floor,
        "skipped": list(skipped),
        "reference": None if reference is None else dict(reference),
    }


def save(path: Path, held: Mapping[str, Any]) -> None:
    """Write a `content` into one file: to a neighbour first, flushed to the disk, then renamed.

    Raises `RunStopped` when the disk is full; the checkpoint that was there stays as it was.
    """
    with whole_file(path) as file:
        torch.save(dict(held), file)
