"""Probing a backbone by its name: what `depthjepa probe` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depthjepa.data.metres import describe_depth
from depthjepa.evaluation import probes
from depthjepa.evaluation.gathering import fitted_views
from depthjepa.evaluation.opened import open_with, to_write
from depthjepa.evaluation.probes import table
from depthjepa.evaluation.probes.task import DEPTH


def probe(
    backbone: str | Path,
    task: str,
    data: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Probe a frozen encoder and return the table with its baselines, as the command writes it to JSON.

    `table["rows"]` holds one dictionary for each baseline and for the encoder: its `name`, and figures by key (`depth`:
    `r2_within`, 1 is everything and 0 the mean map; `absrel`, `delta1`, …; `knn`, `linear`, …: accuracies in percent).
    `table["columns"]` says what each key means, its unit and which way is better; `table["protocol"]` how it was
    computed. Of a run the table also goes to `probes/` in its folder, with what `predict` and the report need.

    Args:
        backbone: what `load_encoder` takes.
        task: `depth`, `normals`, `decode`, `knn`, `linear`, `mlp`, `attentive`.
        data: an RGB-D folder, a class folder, tar shards or `scenes`; None: the run's own.
        settings: KEY=VALUE: `evaluation.depth_readout=dpt`, `evaluation.which=context`, `data.*`, `train.device`, …;
            `model.*` where a foreign layout does not say.
        out: a JSON file to write as well.
        say: gets one line for what is found or assumed of the backbone, and for depth that is read from files; without
            it, what is assumed is a warning.

    Raises:
        BadInput: there is no such task, backbone or data, the data lack depth or labels, or a setting has no effect.
    """
    row = table.chosen(task, table.of_command("probe"))
    file = None if out is None else to_write(out)
    opened, config, encoder, device = open_with(backbone, data, settings, f"{task} probes", [task], say)
    about_depth = describe_depth(fitted_views(config).source) if say and DEPTH in row.needs else []
    result = probes.probe(task, config, encoder, device, opened)
    written = probes.write_probe(result, opened.saved, config.evaluation.which, file)
    if say:
        for line in about_depth:  # once nothing can be refused any more: a refusal is one line
            say(line)
    return written
