"""Running tasks: a checkpoint and data to tables with their baselines, and the files of a run folder.

Every table says what it was computed on and sets the figures of the same architecture at its initial weights (the
random encoder) and of a guess that knows nothing (the mean map, the most frequent class) beside the trained ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from depthjepa import runtime
from depthjepa.checkpoint import Checkpoint
from depthjepa.config import RunConfig, to_mapping
from depthjepa.configuring import build_config
from depthjepa.data.loading import source_name
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.probes import table
from depthjepa.evaluation.probes.shared import shared_tables
from depthjepa.evaluation.probes.task import Data, OwnTask, Probe, SharedTask, Subject
from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder, plain, to_json, write_whole
from depthjepa.model.vit import VisionTransformer


def probe(
    task: str, config: RunConfig, encoder: VisionTransformer, where: torch.device, saved: Checkpoint | None = None
) -> Probe:
    """Run one task on a trained encoder, by the protocol that `config` asks for; `config` also says on which data.

    The baselines are computed on the same images. A task that reads more than the encoder needs the checkpoint `saved`.
    """
    row = table.chosen(task, table.studied())
    subject = Subject(config, encoder, where, saved)
    if row.variant is not None and row.variant.asked(config):
        subject.refuse_lacking((row,))
        return row.variant.run(subject)
    (result,) = run_tasks((row,), subject)
    return result


def run_tasks(tasks: Iterable[table.Runnable], subject: Subject) -> Iterator[Probe]:
    """The results of several tasks by their default protocols; all that read features come first, from one pass.

    Raises `BadInput` before the first of them where one lacks what it needs.
    """
    tasks = tuple(tasks)
    subject.refuse_lacking(tasks)
    shared = [task for task in tasks if isinstance(task, SharedTask)]
    if shared:
        yield from shared_tables(subject, subject.encoders(), shared).values()
    for task in tasks:
        if isinstance(task, OwnTask):
            yield from task.run(subject)


def classification_tables(
    config: RunConfig, encoders: Mapping[str, Encode], tasks: Sequence[str] | None = None
) -> dict[str, Probe]:
    """The tables of tasks that read pooled features or tokens (None: all), with a row for each of the encoders."""
    known = {name: row for name, row in table.studied().items() if isinstance(row, SharedTask)}
    rows = [table.chosen(name, known) for name in (known if tasks is None else tasks)]
    data = Data(config)
    data.refuse_lacking(rows)
    return shared_tables(data, encoders, [row for row in rows if isinstance(row, SharedTask)])


def probe_run(config: RunConfig, saved: Checkpoint, tasks: Sequence[str]) -> None:
    """Write the tables of several tasks of a run, and beside them those of the protocols that `config` asks for."""
    which = config.evaluation.which
    subject = Subject(config, saved.encoder(which), runtime.device(config.train.device), saved)
    rows = [table.chosen(task, table.studied()) for task in tasks]
    started = now()  # of all: none of what is asked for at once is newer than the rest
    for result in run_tasks(rows, subject):
        write_probe(result, saved, which, probed=started)
    for row in rows:
        if row.variant is not None and row.variant.asked(config):
            write_probe(row.variant.run(subject), saved, which, probed=started)


def probe_config(saved: Checkpoint, data: str | None, overrides: Iterable[str] = ()) -> RunConfig:
    """The checkpoint's configuration with other data; subsets of the training data are not carried over."""
    content = to_mapping(saved.config)
    if data is not None and data != content["data"]["root"]:
        content["data"] |= {"root": data, "kind": None, "classes": None, "images_per_class": None}
        content["data"] |= {"val_prefixes": None, "val_list": None}
    config = build_config(content, list(overrides))
    own = replace(config.train, device=saved.config.train.device, threads=saved.config.train.threads)
    if own != saved.config.train:
        raise BadInput("train.* belongs to the checkpoint; a probe takes train.device and train.threads alone")
    for part in ("model", "masks", "guidance", "predictor", "optim", "seed"):
        if getattr(config, part) != getattr(saved.config, part):
            raise BadInput(f"{part}.* belongs to the checkpoint; a probe takes data.*, evaluation.* and train.device")
    _ = config.grid  # refuses an image size that patches do not divide
    return config


def now() -> str:
    """The time as tables keep it, such as 2026-01-31T23:59:59+00:00: later times sort after earlier ones."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_probe(
    result: Probe, saved: Checkpoint, which: str, out: Path | None = None, *, probed: str | None = None
) -> dict[str, Any]:
    """Write table, arrays and readout below the run folder of a checkpoint, and the table alone to `out`; return it.

    The table says of which step the weights are, and of how many where the run says so, and when it was asked for
    (`probed`, by default now). Figures that are not finite are None.

    On other data than the run's own, the files carry the name of the data; the readout is always the newest, and says
    to which weights it belongs. A checkpoint outside a run folder has no place for them.
    """
    folder = saved.run
    asked = RunFolder(folder).summary().get("of_steps") if folder is not None else None
    of_steps = {} if asked is None else {"of_steps": asked}
    content: dict[str, Any] = plain(result.table | {"step": saved.step, "probed": probed or now()} | of_steps)
    if out is not None:
        write_whole(out, to_json(content))
    if folder is not None:
        task, data = result.table["task"], result.table["data"]
        own = source_name(RunFolder(folder).config()["data"]["root"])
        elsewhere = "" if data == own else "-" + re.sub(r"\W+", "_", Path(data).name)
        name = f"probes/{task}{result.variant}{elsewhere}"
        write_whole(folder / f"{name}.json", to_json(content))
        if result.arrays:
            RunFolder(folder).save_arrays(name, result.arrays)
        if result.readout is not None:
            # The mean map, and whose readout it is.
            guesses = table.baselines()
            kept = [row for row in content["rows"] if row["name"] in guesses[:1] or row["name"] not in guesses]
            origin = {"step": str(saved.step), "which": which, "data": data, "rows": json.dumps(plain(kept))}
            result.readout.save(folder / "probes" / f"{task}.safetensors", origin)
    return content
