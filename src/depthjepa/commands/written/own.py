"""What checkpoints of ours hold, however they lie on the disk."""

from __future__ import annotations

from typing import Any

from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reference_training import own_training


def content_of(saved: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """What is saved of a checkpoint of any layout, and in words what a run could not go on with."""
    optimizer, kept = saved.optimizer, saved.reference
    if saved.layout != "depthjepa":
        optimizer, kept = own_training(saved)
    held = checkpoint.content(
        step=saved.step,
        epoch=saved.epoch,
        config=saved.config,
        classes=saved.classes,
        model=saved.model,
        optimizer=optimizer,
        whitening=saved.whitening,
        floor=saved.floor,
        skipped=saved.skipped,
        reference=kept,
    )
    if optimizer:
        return held, []
    without = "optimiser state" if saved.part("predictor") else "predictor and optimiser state"
    return held, [f"without {without}: start other runs from it (init.checkpoint), it cannot be resumed"]
