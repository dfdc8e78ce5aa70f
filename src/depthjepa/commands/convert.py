"""From one checkpoint layout to another: nothing is computed, tensors keep every bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.commands.written.layout import WrittenLayout
from depthjepa.commands.written.table import WRITTEN
from depthjepa.config.reading import build_config
from depthjepa.faults import BadInput
from depthjepa.formats.weights import Which


def convert(source: str, target: Path, to: str, which: Which = "target", settings: Sequence[str] = ()) -> list[str]:
    """Write `target` in another layout; return in words what was found, assumed, written and left out.

    `to` is a row of `WRITTEN`; `which`: the encoder, in a layout of one. `settings` complete what a foreign source does
    not say (`model.heads=3`, `data.image_size=[64,192]`, for a run folder any key).

    Raises:
        BadInput: there is no such layout, or it has no place for the checkpoint; the source cannot be read, the target
            exists, or settings are given for a checkpoint of ours.
    """
    layout: WrittenLayout = WRITTEN.load(to)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise BadInput(f"{target} exists already: give a new path")
    saved = load_checkpoint(source, settings, moments=True)
    if saved.layout == "depthjepa":
        if settings:
            raise BadInput(f"{source} says all about itself: {settings[0]} is for checkpoints of other layouts")
        said = [f"{source}: run {saved.config.name} at step {saved.step}"]
    else:
        said = [f"{source}: layout {saved.layout}, holds {saved.holds}"]
    said += [f"assumed: {what}" for what in saved.assumed]
    size = saved.config.data.size
    if any(text.startswith("data.image_size=") for text in settings) and build_config({}, settings).data.size != size:
        raise BadInput(
            f"{source} is an encoder of {size[0]} x {size[1]} px: conversion keeps its positions as they are"
        )
    return [*said, *layout.write(saved, target, which)]
