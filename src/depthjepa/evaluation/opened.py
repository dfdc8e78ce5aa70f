"""A backbone opened with data and settings: what probes, diagnoses, embeddings and predictions begin with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from depthjepa import runtime
from depthjepa.backbones.opening import Backbone, open_backbone
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.config.reading import given, refuse_other_than_settings, refuse_repeated
from depthjepa.config.run_config import RunConfig
from depthjepa.data.layouts.flat import FlatFolder
from depthjepa.data.listing import in_words
from depthjepa.evaluation.probes import probe_config, table
from depthjepa.faults import BadInput
from depthjepa.model.encoder import Encoder

NAMED = 3  # unreadable images that are named; of more, their number says enough

Say = Callable[[str], None]


class Opened(NamedTuple):
    """A backbone, the configuration that it is measured with, and its encoder, with the device to measure it on."""

    backbone: Backbone
    config: RunConfig
    encoder: Encoder
    device: torch.device

    @property
    def saved(self) -> Checkpoint | None:
        """The checkpoint behind it; None for a network of another library."""
        return self.backbone.saved


def open_with(
    backbone: str | Path,
    data: str | Path | None,
    settings: Sequence[str],
    result: str,
    tasks: Collection[str] = (),
    say: Say | None = None,
    *,
    run_for: str = "",
) -> Opened:
    """Open a backbone with data (None: the run's own) and KEY=VALUE (`data.*`, `evaluation.*`, `train.device`, …).

    `model.*` and `data.image_size` say what a foreign layout does not. `result` is what it is opened for, in words, and
    `tasks` are the tables that are computed for that. `say` gets one line for what was found in a file of another
    library and for all that had to be assumed of it; without `say`, what is assumed is a warning. `run_for` is what
    takes more than an encoder, which networks of other libraries are refused for.

    Raises `BadInput`, also for a key that has no effect on the result.
    """
    refuse_other_than_settings(settings)
    refuse_repeated(settings)
    twice = [text for text in settings if data is not None and text.startswith("data.root=")]
    if twice:
        raise BadInput(f"{twice[0]}, but {data} is given as the data already, and only one of them can hold")
    found = open_backbone(backbone, [text for text in settings if text.startswith(("model.", "data.image_size="))])
    run = [task for name, task in table.tasks().items() if name in tasks]
    if run and all(task.reads_run for task in run):
        run_for = ", ".join(task.name for task in run)
    if found.saved is None and run_for:
        raise BadInput(
            f"{run_for} takes a run of depthjepa, of which it reads more than the encoder; {backbone} is {found.found}"
        )
    config = probe_config(found.config, None if data is None else str(data), settings)
    table.refuse_unread(result, run, config, given(settings, config))
    # A file that holds one encoder serves as either; what is written about it says which one it was.
    which = found.which(config.evaluation.which)
    config = replace(config, evaluation=replace(config.evaluation, which=which))
    if found.found and say is not None:
        say(f"{backbone}: {found.found}; taken: {which} encoder")
    for what in found.assumed:
        (say or warn)(f"{backbone}: assumed {what}")
    device = runtime.device(config.train.device)
    runtime.settle_cpu(config.train.threads)
    return Opened(found, config, found.encoder(which), device)


def to_write(out: str | Path) -> Path:
    """The path of what is to be written; raises `BadInput` for an empty one, which would be the working directory."""
    if not str(out):
        raise BadInput("out is an empty path: name what is to be written")
    return Path(out)


def tell_ignored(images: FlatFolder, say: Say | None = None) -> None:
    """Say what lies below a folder beside the images that are taken, if anything."""
    if say is not None and images.ignored:
        say(f"{images.name}: {len(images)} images; ignored: {in_words(images.ignored)}")


def tell_unreadable(faults: Sequence[str], say: Say | None = None) -> None:
    """Say, or without `say` warn, which images could not be read and were left out, and why."""
    if faults:
        more = "; …" if len(faults) > NAMED else ""
        (say or warn)(f"{len(faults)} unreadable, left out: {'; '.join(faults[:NAMED])}{more}")


def warn(text: str) -> None:
    """Tell a program what a command would write to standard error."""
    warnings.warn(text, stacklevel=4)
