"""Running tasks: a checkpoint and data to tables with their baselines, and the files of a run folder.

Every table says what it was computed on and sets the figures of the same architecture at its initial weights (the
random encoder) and of a guess that knows nothing (the mean map, the most frequent class) beside the trained ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import torch

from depthjepa import runtime
from depthjepa.backbones.opening import Backbone
from depthjepa.backbones.vit import OpenedCheckpoint
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.config.reading import build_config, given
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.config import OF_ITS_OWN
from depthjepa.data.loading import source_name
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes import table
from depthjepa.evaluation.probes.shared import shared_tables
from depthjepa.evaluation.probes.task import Data, Judged, OwnTask, Probe, SharedTask, Subject
from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder, plain, to_json, write_whole
from depthjepa.loggers.logger import tell_table
from depthjepa.model.encoder import Encoder


def probe(
    task: str, config: RunConfig, encoder: Encoder, device: torch.device, backbone: Backbone | None = None
) -> Probe:
    """Run one task on a trained encoder, by the protocol that `config` asks for; `config` also says on which data.

    The baselines are computed on the same images. `backbone`: what the encoder was opened from, which tells its initial
    weights; a task that reads more than the encoder needs it. Without one the encoder is as `config` says.
    """
    row = table.chosen(task, table.studied())
    subject = Subject(config, encoder, device, backbone)
    if row.variant is not None and row.variant.asked(config):
        subject.refuse_lacking((row,))
        return _with_rows_told(row.variant.run(subject), subject)
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
        for result in shared_tables(subject, subject.encoders(), shared).values():
            yield _with_rows_told(result, subject)
    for task in tasks:
        if isinstance(task, OwnTask):
            for result in task.run(subject):
                yield _with_rows_told(result, subject)


def _with_rows_told(result: Probe, subject: Subject) -> Probe:
    """The result, whose protocol says where there is no row of the random encoder."""
    if subject.backbone is None or subject.saved is not None or RANDOM in subject.named:
        return result
    protocol = f"{result.table['protocol']}; no {RANDOM}: nothing tells the initial weights of this file"
    return replace(result, table=result.table | {"protocol": protocol})


def classification_tables(
    config: RunConfig, encoders: Mapping[str, Encode], tasks: Sequence[str] | None = None
) -> dict[str, Probe]:
    """The tables of tasks that read pooled features or tokens (None: all), with a row for each of the encoders."""
    known = {name: row for name, row in table.studied().items() if isinstance(row, SharedTask)}
    rows = [table.chosen(name, known) for name in (known if tasks is None else tasks)]
    data = Data(config)
    data.refuse_lacking(rows)
    return shared_tables(data, encoders, [row for row in rows if isinstance(row, SharedTask)])


def probe_run(config: RunConfig, saved: Checkpoint, asked: Sequence[str | Judged]) -> None:
    """Write the tables of several tasks of a run, and beside them those of the protocols that `config` asks for.

    Those that are judged on other data come last, each under its own name.
    """
    which = config.evaluation.which
    device = runtime.device(config.train.device)
    subject = Subject(config, saved.encoder(which), device, OpenedCheckpoint(saved))
    rows = [table.chosen(task, table.studied()) for task in asked if isinstance(task, str)]
    started = now()  # of all: none of what is asked for at once is newer than the rest
    # A table is there once all of its task is: what goes on after a kill asks for the usual tables alone.
    for row in rows:
        if row.variant is not None and row.variant.asked(config):
            write_probe(row.variant.run(subject), saved, which, probed=started)
    for result in run_tasks(rows, subject):
        write_probe(result, saved, which, probed=started)
    for each in [each for each in asked if isinstance(each, Judged)]:
        result = probe(each.task, judged_config(config, each), subject.encoder, device, OpenedCheckpoint(saved))
        write_probe(result, saved, which, name=each.name)


def judged_config(config: RunConfig, judged: Judged) -> RunConfig:
    """A run's configuration as a further probe has it; raises `BadInput` for settings that it does not read."""
    found = probe_config(config, judged.data, judged.settings)
    row = table.chosen(judged.task, table.studied())
    table.refuse_unread(f"the probe {judged.name}", [row], found, given(judged.settings, found))
    return found


def probe_config(own: RunConfig, data: str | None, overrides: Iterable[str] = ()) -> RunConfig:
    """A backbone's own configuration with other data; subsets of the training data are not carried over."""
    content = to_mapping(own)
    if data is not None and data != content["data"]["root"]:
        content["data"] |= {"root": data, **OF_ITS_OWN}
    config = build_config(content, list(overrides))
    if replace(config.train, device=own.train.device, threads=own.train.threads) != own.train:
        raise BadInput("train.* belongs to the checkpoint; a probe takes train.device and train.threads alone")
    for part in ("model", "masks", "guidance", "predictor", "optim", "seed"):
        if getattr(config, part) != getattr(own, part):
            raise BadInput(f"{part}.* belongs to the checkpoint; a probe takes data.*, evaluation.* and train.device")
    _ = config.grid  # refuses an image size that patches do not divide
    return config


def _elsewhere(folder: Path, usual: str, data: str) -> str:
    """What the files of a table on other data are called: after its folders; with a mark where others are called so."""
    folders = "-".join(PurePath(part).name for part in data.split(","))
    name = f"{usual}-" + re.sub(r"\W+", "_", folders)
    file = folder / "probes" / f"{name}.json"
    if file.is_file() and json.loads(file.read_text())["data"] != data:
        return f"{name}-{hashlib.blake2b(data.encode(), digest_size=4).hexdigest()}"
    return name


def now() -> str:
    """The time as tables keep it, such as 2026-01-31T23:59:59+00:00: later times sort after earlier ones."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_probe(
    result: Probe,
    saved: Checkpoint | None,
    which: str,
    out: Path | None = None,
    *,
    probed: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Write table, arrays and readout below the run folder of a checkpoint, and the table alone to `out`; return it.

    The table says of which step the weights are, and of how many where the run says so, and when it was asked for
    (`probed`, by default now). Figures that are not finite are None.

    On other data than the run's own, the files carry the name of the data; the readout is always the newest, and says
    to which weights it belongs. With a `name` the files bear that, and no readout is kept. A checkpoint outside a run
    folder has no place for them, nor has a network of another library (`saved` is None).
    """
    folder = None if saved is None else saved.run
    asked = RunFolder(folder).summary().get("of_steps") if folder is not None else None
    of_steps = {} if asked is None else {"of_steps": asked}
    step = {} if saved is None else {"step": saved.step}
    content: dict[str, Any] = plain(result.table | step | {"probed": probed or now()} | of_steps)
    if out is not None:
        write_whole(out, to_json(content))
    if saved is not None and folder is not None:
        task, data = result.table["task"], result.table["data"]
        of_run = RunFolder(folder).config()
        own = of_run["data"]
        root = own["root"]  # empty in a folder that was converted from mere weights
        usual = f"{task}{result.variant}"
        if not (root and data == source_name(root, own.get("scene_textures"))):
            usual = _elsewhere(folder, usual, data)
        file = f"probes/{name or usual}"
        if result.arrays:
            RunFolder(folder).save_arrays(file, result.arrays)
        if result.readout is not None and name is None:
            # The mean map, and whose readout it is.
            guesses = table.baselines()
            kept = [row for row in content["rows"] if row["name"] in guesses[:1] or row["name"] not in guesses]
            origin = {"step": str(saved.step), "which": which, "data": data, "rows": json.dumps(plain(kept))}
            result.readout.save(folder / "probes" / f"{task}.safetensors", origin)
        write_whole(folder / f"{file}.json", to_json(content))  # last: where there is a table, all of it is there
        tell_table(of_run.get("train", {}).get("loggers", ()), folder, Path(file).name, content, saved.step)
    return content
