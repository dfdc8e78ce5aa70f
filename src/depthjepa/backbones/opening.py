"""What a backbone is, and opening one by what a user calls it: a path, a hub id, a name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args, runtime_checkable

from depthjepa.backbones.table import BACKBONES
from depthjepa.checkpoint import Checkpoint
from depthjepa.config import RunConfig
from depthjepa.configuring import refuse_other_than_settings
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.weights import Which
from depthjepa.model.vit import VisionTransformer


@runtime_checkable
class Backbone(Protocol):
    """A file or a name that was opened: one or two encoders, and what is known of them."""

    @property
    def config(self) -> RunConfig:
        """What it was trained with as far as it tells: image size, normalisation, shape, data."""
        ...

    @property
    def saved(self) -> Checkpoint:
        """The checkpoint behind it."""
        ...

    @property
    def found(self) -> str:
        """What was found in a file of another library, in words; empty where there is nothing to say."""
        ...

    @property
    def assumed(self) -> tuple[str, ...]:
        """What had to be assumed since nothing says it, in words."""
        ...

    def which(self, wanted: Which) -> Which:
        """The encoder that stands for the wanted one: what holds one encoder only gives that one."""
        ...

    def encoder(self, which: Which) -> VisionTransformer:
        """The encoder, in eval mode."""
        ...


@dataclass(frozen=True, slots=True)
class Family:
    """How backbones of one family are told and opened.

    `claims` tells by the source alone, without loading it; `open` takes `model.*` and `data.image_size` as KEY=VALUE,
    which complete what a source does not say, and raises `BadInput`.
    """

    claims: Callable[[str], bool]
    open: Callable[[str, Sequence[str]], Backbone]


def open_backbone(source: str | Path, settings: Sequence[str] = ()) -> Backbone:
    """Open a backbone by the first family that claims it; raises `BadInput`, also for what is no path and no name."""
    if not isinstance(source, (str, Path)):
        raise BadInput(f"a backbone is opened by its path or name, not from a {type(source).__name__}")
    if not str(source):
        raise BadInput(f"the backbone is an empty path: give {'; '.join(row.about for row in BACKBONES.rows)}")
    families = [BACKBONES.load(name) for name in BACKBONES.names]
    family: Family = next(each for each in families if each is families[-1] or each.claims(str(source)))
    return family.open(str(source), settings)


def load_encoder(backbone: str | Path, which: Which = "target", settings: Sequence[str] = ()) -> VisionTransformer:
    """Load an encoder: a module in eval mode, normalised images [b, 3, h, w] to tokens [b, n, d].

    `backbone`: a run folder (its newest checkpoint), a checkpoint of ours or of another library, a hub id or a name.
    `which`: the `target` encoder (moving average, what the paper evaluates) or the `context` encoder. A file that
    holds one encoder gives that one. `settings` (`["model.heads=3"]`, …) say what a foreign layout does not; what is
    assumed instead is a warning. Images of another size than it was trained on are taken: positions stretch.
    `help(encoder)` says what goes in and what comes out.

    Raises `BadInput` where nothing is there or it is no encoder that can be read.
    """
    if which not in (choices := get_args(Which)):
        raise BadInput(f"there is no encoder {which!r}{nearest(str(which), choices)}: choose from {', '.join(choices)}")
    refuse_other_than_settings(settings)
    opened = open_backbone(backbone, settings)
    for what in opened.assumed:
        warnings.warn(f"{backbone}: assumed {what}", stacklevel=2)
    return opened.encoder(which)
