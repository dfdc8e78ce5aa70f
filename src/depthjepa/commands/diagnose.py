"""Diagnosing a backbone by its name: what `depthjepa diagnose` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.evaluation import probes
from depthjepa.evaluation.opened import open_with, to_write
from depthjepa.evaluation.probes import table
from depthjepa.faults import BadInput


def diagnose(
    backbone: str | Path,
    data: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    against: str | Path | None = None,
    gates: bool = False,
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure collapse beside the random encoder; of a guided run also whether depth got into the features.

    Returns a table for each diagnosis, as the command writes them to JSON: that of collapse first (`rank_me`,
    `position_share`, …), then of a guided run D0 to D5; `gates`: those of why depth does not decode in place of them. A
    table's `verdict` says in words what is wrong. Of a run they also go to `probes/` in its folder.

    Args:
        backbone: what `load_encoder` takes.
        data: an RGB-D folder, a class folder, tar shards or `scenes`; None: the run's own.
        settings: KEY=VALUE of `evaluation.*`, `data.*` and `train.device`.
        against: an unguided twin of a guided run: did the encoder learn depth, or the head alone?
        gates: overfit heads and swap what they read, on RGB-D data.
        out: a JSON file to write the first table to as well.
        say: gets one line for what is found or assumed of the backbone.

    Raises:
        BadInput: there is no such backbone or data, the data lack what a diagnosis needs, or a setting has no effect.
    """
    if against is not None and Path(against).resolve() == Path(backbone).resolve():
        raise BadInput(f"--against {against}: this is the run itself; give its unguided twin")
    tasks = table.of_command("diagnose --gates" if gates else "diagnose")
    file = None if out is None else to_write(out)
    twin = "" if against is None else "--against"
    opened, config, encoder, device = open_with(backbone, data, settings, "diagnoses", tasks, say, run_for=twin)
    subject = probes.Subject(config, encoder, device, opened, None if against is None else load_checkpoint(against))
    asked = [task for task in tasks.values() if opened.saved is not None or not task.reads_run]
    return [
        probes.write_probe(result, opened.saved, config.evaluation.which, None if number else file)
        for number, result in enumerate(list(probes.run_tasks(asked, subject)))
    ]
