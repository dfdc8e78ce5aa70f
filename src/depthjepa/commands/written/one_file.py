"""A checkpoint of ours in one file, also of a run that saves it in parts."""

from __future__ import annotations

from pathlib import Path

from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.commands.written.layout import WrittenLayout
from depthjepa.commands.written.own import content_of
from depthjepa.formats.weights import Which


def write(saved: Checkpoint, target: Path, which: Which) -> list[str]:
    """Write the whole checkpoint."""
    held, lacking = content_of(saved)
    checkpoint.save(target, held)
    return [f"{target}: a checkpoint in one file, of step {saved.step}", *lacking]


LAYOUT = WrittenLayout(write)
