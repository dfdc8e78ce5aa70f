"""Checkpoints: whole or absent, loaded strictly, and enough to go on with exactly the same run.

A file holds tensors and plain values only, so it is read with `weights_only=True`: the networks, the optimiser, the
step, the configuration, the class names and the teacher's whitening.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from depthjepa.config import RunConfig, build_config, to_mapping
from depthjepa.faults import BadInput
from depthjepa.logbook import whole_file
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer
from depthjepa.teachers.latents import Whitening

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds."""

    step: int
    config: RunConfig
    classes: tuple[str, ...]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    whitening: Whitening | None
    floor: float | None
    skipped: tuple[str, ...]
    path: Path

    def encoder(self, which: Literal["target", "context"] = "target") -> VisionTransformer:
        """Build one encoder with its weights, in eval mode. A run without a target encoder has one encoder."""
        prefix = f"{which}_encoder."
        if which == "target" and not any(key.startswith(prefix) for key in self.model):
            prefix = "context_encoder."
        weights = {key.removeprefix(prefix): value for key, value in self.model.items() if key.startswith(prefix)}
        encoder = build_encoder(self.config)
        load_strictly(encoder, weights, self.path)
        return encoder.eval().requires_grad_(False)


def save(
    folder: Path,
    name: str,
    *,
    step: int,
    config: RunConfig,
    classes: tuple[str, ...],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    whitening: Whitening | None,
    floor: float | None,
    skipped: tuple[str, ...],
) -> Path:
    """Write `folder/checkpoints/NAME.pt`: to a neighbour first, flushed to the disk, then renamed.

    Raises `RunStopped` when the disk is full; the checkpoint that was there stays as it was.
    """
    content = {
        "format": FORMAT,
        "step": step,
        "config": to_mapping(config),
        "classes": list(classes),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "whitening": None if whitening is None else {"mean": whitening.mean, "deviation": whitening.deviation},
        "floor": floor,
        "skipped": list(skipped),
    }
    path = folder / "checkpoints" / f"{name}.pt"
    with whole_file(path) as file:
        torch.save(content, file)
    return path


def find(checkpoint: str | Path) -> Path:
    """Return the file of a checkpoint: the file itself, or the newest one of a run folder."""
    path = Path(checkpoint)
    if path.is_file():
        return path
    if not path.exists():
        raise BadInput(f"there is no checkpoint {path}: give a run folder or a checkpoint file")
    last = path / "checkpoints" / "last.pt"
    if last.is_file():
        return last
    raise BadInput(f"{path} holds no checkpoint: {last} is not there")


def load(checkpoint: str | Path, where: torch.device | None = None) -> Checkpoint:
    """Read a checkpoint; raises `BadInput` for a file that is truncated, unsafe or not ours."""
    path = find(checkpoint)
    try:
        content = torch.load(path, map_location=where or "cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, ValueError) as fault:
        reason = str(fault).split("\n")[0]
        raise BadInput(f"{path} is not a readable checkpoint (truncated, or of another kind): {reason}") from fault
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInput(f"{path} is not a checkpoint of depthjepa")
    white = content["whitening"]
    return Checkpoint(
        content["step"],
        build_config(content["config"]),
        tuple(content["classes"]),
        content["model"],
        content["optimizer"],
        None if white is None else Whitening(white["mean"], white["deviation"]),
        content["floor"],
        tuple(content["skipped"]),
        path,
    )


def load_strictly(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights where names and shapes all agree; raises `BadInput` that names what does not."""
    expected = model.state_dict()
    missing, left_over = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    other = [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected.keys() & weights.keys()
        if expected[key].shape != weights[key].shape
    ]
    if missing or left_over or other:
        faults = [f"missing {_few(missing)}"] * bool(missing) + [f"left over {_few(left_over)}"] * bool(left_over)
        raise BadInput(f"{path} does not fit the model: " + "; ".join(faults + sorted(other)[:3]))
    model.load_state_dict(weights)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_encoder(checkpoint: str | Path, which: Literal["target", "context"] = "target") -> VisionTransformer:
    """Load an encoder: a module in eval mode, normalised images [b, 3, h, w] to tokens [b, n, d].

    `which`: the `target` encoder (moving average, what the paper evaluates) or the `context` encoder.
    """
    return load(checkpoint).encoder(which)
