"""What a backbone is, and opening one by what a user calls it: a path, a hub id, a name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

from depthjepa.backbones.table import BACKBONES
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.config.reading import refuse_other_than_settings
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.files import read_json
from depthjepa.formats.opening import is_hub_id, snapshot
from depthjepa.formats.weights import Which
from depthjepa.model.encoder import Encoder


@runtime_checkable
class Backbone(Protocol):
    """A file or a name that was opened: one or two encoders, and what is known of them."""

    @property
    def config(self) -> RunConfig:
        """What it was trained with as far as it tells: name, image size, patch size, normalisation; of ours all else.

        Of a network of another library the other keys mean nothing.
        """
        ...

    @property
    def saved(self) -> Checkpoint | None:
        """The checkpoint behind it; None for a network of another library."""
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

    def encoder(self, which: Which) -> Encoder:
        """The encoder, in eval mode."""
        ...

    def random(self, config: RunConfig) -> Encoder | None:
        """The same architecture at its initial weights, in eval mode: the random row of tables.

        `config` is what it is measured with: its seed draws the weights. None where nothing tells the initial weights.
        """
        ...


@dataclass(frozen=True)
class Source:
    """What a user calls a backbone, and where it lies: of a hub id the snapshot that was fetched."""

    name: str
    place: Path

    @cached_property
    def folder(self) -> Path | None:
        """The folder of a model with its `config.json`: given as such, or by the weights beside it; None without."""
        folder = self.place.parent if self.place.name == "model.safetensors" else self.place
        return folder if (folder / "config.json").is_file() else None

    @cached_property
    def described(self) -> Mapping[str, Any]:
        """What the `config.json` of that folder says; empty without one."""
        return {} if self.folder is None else read_json(self.folder / "config.json")


@dataclass(frozen=True, slots=True)
class Family:
    """How backbones of one family are told and opened.

    `claims` tells by the name and by what lies there, without loading it; `open` takes `model.*` and `data.image_size`
    as KEY=VALUE, which complete what a source does not say, and raises `BadInput`.
    """

    claims: Callable[[Source], bool]
    open: Callable[[Source, Sequence[str]], Backbone]


def open_backbone(source: str | Path, settings: Sequence[str] = ()) -> Backbone:
    """Open a backbone by the first family that claims it; raises `BadInput`, also for what is no path and no name."""
    family, found = family_of(source)
    return family.open(found, settings)


def family_of(source: str | Path) -> tuple[Family, Source]:
    """The first family that claims a backbone, and where it lies; raises `BadInput` as `open_backbone`."""
    if not isinstance(source, (str, Path)):
        raise BadInput(f"a backbone is opened by its path or name, not from a {type(source).__name__}")
    if not str(source):
        raise BadInput(f"the backbone is an empty path: give {'; '.join(row.about for row in BACKBONES.rows)}")
    families = [BACKBONES.load(name) for name in BACKBONES.names]
    name = str(source)
    found = Source(name, snapshot(name) if is_hub_id(name) else Path(name))
    return next(each for each in families if each is families[-1] or each.claims(found)), found


def load_encoder(backbone: str | Path, which: Which = "target", settings: Sequence[str] = ()) -> Encoder:
    """Load an encoder: a module in eval mode, normalised images [b, 3, h, w] to tokens [b, n, d].

    `backbone`: a run folder (its newest checkpoint), a checkpoint of ours or of another library, a folder of timm or
    transformers, a hub id, `timm:NAME` or an ONNX file.
    `which`: the `target` encoder (moving average, what the paper evaluates) or the `context` encoder. A file that
    holds one encoder gives that one. `settings` (`["model.heads=3"]`, …) say what a foreign layout does not; what is
    assumed instead is a warning. Images of another size than it was trained on are taken, as long as the network takes
    them: positions stretch as its own library stretches them.
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
