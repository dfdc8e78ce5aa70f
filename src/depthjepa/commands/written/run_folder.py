"""A run folder, which `train --resume` goes on with."""

from __future__ import annotations

from pathlib import Path

from depthjepa import runtime
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.commands.written.layout import WrittenLayout
from depthjepa.commands.written.own import content_of
from depthjepa.config.run_config import to_mapping
from depthjepa.formats.weights import Which
from depthjepa.logbook import RunFolder


def write(saved: Checkpoint, target: Path, which: Which) -> list[str]:
    """Write the checkpoint as the last one of a new run folder."""
    held, lacking = content_of(saved)
    checkpoint.save(target / "checkpoints" / "last.pt", held)
    RunFolder(target).begin(to_mapping(saved.config), runtime.environment())
    return [f"{target}: a run folder at step {saved.step}", *lacking]


LAYOUT = WrittenLayout(write)
