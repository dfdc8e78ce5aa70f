"""What a row of the table of tasks is: one kind of probe, with all that commands and reports have to know of it.

A task is a file beside this one that ends in its row, `TASK`. There are two kinds that can be run. A `SharedTask` reads
pooled features or tokens, and shares one pass of each encoder over the data with all others of its kind; an `OwnTask`
walks over the data itself. A plain `Task` is a further table that another task writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure

from depthjepa.backbones.opening import Backbone
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.columns import Column, table
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.data.layouts.layout import with_depth, with_label_maps, with_labels
from depthjepa.data.samples import Source, segment_classes
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import RANDOM, Features, Views, encode_with, fitted_views, is_random, judged_views
from depthjepa.evaluation.readout import DepthReadout
from depthjepa.faults import BadInput
from depthjepa.method import build_encoder
from depthjepa.model.encoder import Encoder

Rows = Sequence[Mapping[str, Any]]
Command = Literal["probe", "diagnose", "diagnose --gates"]


@dataclass(frozen=True, slots=True)
class Need:
    """What a task cannot do without: whether a run and its training and validation data have it, and its refusal."""

    there: Callable[[RunConfig, Source, Source], bool]
    refusal: Callable[[str], str]  # of what data.root asks for; goes on after "the TASK probe"
    of_data: bool = True  # or of the run: loading it refuses then, and names the checkpoint

    def lacking(self, task: str, config: RunConfig, train: Source, val: Source) -> str | None:
        """The sentence of the refusal; None where nothing is lacking."""
        if self.there(config, train, val):
            return None
        return f"the {task} probe {self.refusal(config.data.root)}"


LABELS = Need(
    lambda config, train, val: bool(train.classes),
    lambda data: f"needs labels, and {data} has none: give {with_labels()}",
)
DEPTH = Need(
    lambda config, train, val: train.has_depth and val.has_depth,
    lambda data: f"needs depth, and {data} has none: give {with_depth()}",
)
LABEL_MAPS = Need(
    lambda config, train, val: bool(segment_classes(train)) and bool(segment_classes(val)),
    lambda data: f"needs label maps, and {data} has none: give {with_label_maps()}",
)


@dataclass(frozen=True)
class Data:
    """The fixed views of a run's data, each opened when it is first asked for."""

    config: RunConfig

    @cached_property
    def train(self) -> Views:
        """Those of the training images."""
        return Views(self.config, "train")

    @cached_property
    def fitted(self) -> Views:
        """Those of the images that readouts of depth are fitted on: the training images, or other ones."""
        return self.train if self.config.evaluation.fit_on is None else fitted_views(self.config)

    @cached_property
    def val(self) -> Views:
        """Those of the validation images."""
        return Views(self.config, "val")

    @cached_property
    def judged(self) -> Views:
        """Those of the images that readouts of depth are judged on: training images too, if they may be."""
        return judged_views(self.config) if self.config.evaluation.judge_training else self.val

    def of(self, split: Split) -> Views:
        """Those of one split."""
        return self.train if split == "train" else self.val

    def lacking(self, task: Task) -> str | None:
        """What the data lack of what a task needs of them, in a sentence."""
        train = self.fitted if "fit_on" in task.reads else self.train
        val = self.judged if "judge_training" in task.reads else self.val
        needs = [need for need in task.needs if need.of_data]
        found = (need.lacking(task.name, self.config, train.source, val.source) for need in needs)
        return next((sentence for sentence in found if sentence is not None), None)

    def refuse_lacking(self, tasks: Iterable[Task]) -> None:
        """Raise `BadInput` where the data lack what a task needs of them."""
        for task in tasks:
            if sentence := self.lacking(task):
                raise BadInput(sentence)


@dataclass(frozen=True)
class Subject(Data):
    """What is probed: an encoder on data, and the backbone that it comes from, where it has one."""

    encoder: Encoder
    device: torch.device
    backbone: Backbone | None = None
    against: Checkpoint | None = None  # a twin to stand beside it, for tasks of `diagnose`
    # Further encoders that have rows in the same tables, by the names of the rows (`random_row` for initial weights,
    # also its own); None: its own initial weights alone.
    others: Mapping[str, Encoder] | None = None

    @property
    def saved(self) -> Checkpoint | None:
        """The checkpoint that the encoder comes from; None without one, and for a network of another library."""
        return None if self.backbone is None else self.backbone.saved

    @cached_property
    def named(self) -> dict[str, Encoder]:
        """The same architecture at its initial weights, where something tells them, this one, and others, by rows."""
        own, others = {self.config.name: self.encoder}, dict(self.others or {})
        if self.others is not None:
            random = others.pop(RANDOM, None)
        else:
            random = build_encoder(self.config) if self.backbone is None else self.backbone.random(self.config)
        return ({} if random is None else {RANDOM: random}) | own | others

    def random_row(self, name: str) -> str:
        """The name of the row of an encoder at its initial weights."""
        return RANDOM if name == self.config.name else f"{RANDOM}, {name}"

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the rows of the other encoders, without those of initial weights."""
        return tuple(name for name in self.others or () if not is_random(name))

    def refuse_shallow(self, setting: str, layers: Sequence[int], others: str) -> None:
        """Raise `BadInput` where a network of another library has fewer layers than a setting reads."""
        foreign = self.backbone is not None and self.saved is None
        if foreign and len(set(layers)) < len(layers):  # a shallow run of ours gives some twice
            raise BadInput(
                f"{setting} reads {len(layers)} layers, and {self.config.name} has {self.encoder.depth}: take {others}"
            )

    def encoders(self) -> dict[str, Encode]:
        """The random encoder and this one as functions of images, by the names of their rows."""
        precision = self.config.evaluation.precision
        return {name: encode_with(each, self.device, precision) for name, each in self.named.items()}


@dataclass(frozen=True, slots=True)
class Judged:
    """A further probe of a run: a task on data of its own, with settings, whose files bear a name of its own."""

    name: str
    task: str
    data: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """A table in the form that run folders keep, with arrays for pictures and a readout to predict with.

    `variant` tells its files from those of the same task by its default protocol. `beside` holds the arrays of other
    encoders in the table, by the names of their rows.
    """

    table: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    beside: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    readout: DepthReadout | None = None
    variant: str = ""

    def value(self, row: str, key: str) -> float:
        """Return one figure."""
        return float(next(entry[key] for entry in self.table["rows"] if entry["name"] == row))


@dataclass(frozen=True, slots=True)
class Seen:
    """The images of a split, and what one encoder says of them."""

    views: Views
    features: Features


@dataclass(frozen=True, slots=True)
class Measured:
    """One encoder's row in a table (figures by column key), the rows of guesses that know nothing, and arrays."""

    figures: dict[str, float | str]
    guesses: dict[str, dict[str, float]] = field(default_factory=dict)  # by name; the same for every encoder
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # `images` are the same for every encoder


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report: pictures of what a task stored in the folders of runs.

    Of `maps`, one row an image, `draw` also takes how many `images` to draw: the first screen of a page has few.
    """

    title: str
    draw: Callable[..., list[Captioned]]  # of runs
    maps: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """What `depthjepa show TASK` draws of the folders of runs (by the names of the runs), side by side."""

    about: str
    draw: Callable[[Mapping[str, Path], bool], Figure]  # the second: with the photographs
    photographs: bool = False  # whether they can be left out


@dataclass(frozen=True, slots=True)
class Variant:
    """Another protocol of a task, which a configuration asks for; studies have it beside the default one."""

    asked: Callable[[RunConfig], bool]
    setting: str  # what asks for it, in words
    run: Callable[[Subject], Probe]
    reads: tuple[str, ...] = ()  # keys of `evaluation` that the task reads by this protocol alone


@dataclass(frozen=True, slots=True)
class Resampled:
    """The figure that a task's rows are ranked by, of any resample of the images, from the arrays that it keeps.

    `figure` takes the arrays of a row and how often each validation image counts. The arrays have a `group` for each.
    """

    key: str
    figure: Callable[[Mapping[str, np.ndarray], Float64[np.ndarray, " images"]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of table.

    `columns` are all that its tables may have: each has those that its rows have figures for. `guesses` are the names
    of its rows that no encoder gave; those and the random encoder are baselines.
    """

    name: str
    title: str  # of its tables in a report
    about: str  # one line for the help of commands
    columns: tuple[Column, ...]
    guesses: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    reads_run: bool = False  # whether it reads more of a run of ours than its encoder
    section: Section | None = None
    picture: Picture | None = None
    command: Command = "probe"
    studied: bool = True  # whether studies may ask for it
    variant: Variant | None = None
    resampled: Resampled | None = None
    usual: bool = False  # whether backbones are compared by it unless others are asked for
    reads: tuple[str, ...] = ()  # keys of `evaluation` that it reads, beside those that all tasks do

    def table(self, source: Source, protocol: str, rows: Rows) -> dict[str, Any]:
        """The table of these rows as run folders keep it."""
        return table(self.name, source.name, protocol, self.columns, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTask(Task):
    """A task that reads the features of one encoder at a time, on the `splits` that it names."""

    measure: Callable[[RunConfig, Mapping[Split, Seen]], Measured]
    protocol: Callable[[RunConfig, Mapping[Split, Views], Rows], str]
    verdict: Callable[[Rows], list[str]] | None = None  # sentences about all rows
    splits: tuple[Split, ...] = ("train", "val")
    tokens: bool = False  # whether it reads single tokens, or their means alone


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTask(Task):
    """A task that walks over the data itself, and may write several tables, or none where there is nothing to say."""

    run: Callable[[Subject], Iterable[Probe]]
