"""One typed configuration of a run; each part is declared beside the code it configures, training here.

`reading` has it from recipes and KEY=VALUE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from depthjepa.data.config import DataConfig
from depthjepa.faults import BadInput
from depthjepa.guidance.config import Guidance, NoGuidance
from depthjepa.guidance.teachers.fit.config import FitConfig
from depthjepa.logbook import flatten, plain
from depthjepa.loggers.table import LOGGERS, check_logger
from depthjepa.masks import MaskConfig
from depthjepa.model.heads.head import CELLS
from depthjepa.model.jepa import LossConfig
from depthjepa.model.predictor import PredictorConfig
from depthjepa.model.vit import ModelConfig
from depthjepa.optim import OptimConfig
from depthjepa.settings import configuration

LoggerName = Annotated[str, AfterValidator(check_logger), WithJsonSchema({"enum": LOGGERS.names})]


@configuration
class About:
    """What a recipe is, what it costs and what it scores: claims that can be falsified."""

    summary: str = ""
    """What the recipe does, in one sentence."""
    hardware: str = "not measured"
    """The machine that it is meant for, or was measured on."""
    time: str = "not measured"
    """How long it takes there."""
    score: str = "not measured"
    """What it reaches."""
    source: str = ""
    """Paper or code that its settings are from."""
    choices: str = ""
    """Why size, batch and rate are what they are; said before a run."""


@configuration
class InitConfig:
    """Where a run starts from."""

    checkpoint: str | None = None
    """Weights to start from, in any layout that `depthjepa convert` reads; null: random weights."""
    frozen_steps: NonNegativeInt = 0
    """First steps in which the head alone learns (paper: 1000)."""
    thaw_steps: NonNegativeInt = 0
    """Steps after the frozen ones over which the rate of encoder and predictor grows from 0; 0: at once (paper)."""


@configuration
class TrainConfig:
    """Length of a run, its batches, its precision, and what is written how often.

    `precision` auto is settled when a run starts, by what this machine multiplies faster, and kept when it is resumed.
    `compile` has torch.compile fuse the element-wise work of the blocks: a minute before the first step, and for a CPU
    that is kept busy by its matrix products no gain (`depthjepa bench train.compile=true` tells).
    """

    objective: Literal["jepa", "supervised"] = "jepa"
    """I-JEPA (and guidance), or the same encoder trained on depth and labels end to end."""
    epochs: PositiveFloat | None = None
    """Length in passes over the training data; null: given by train.steps."""
    steps: PositiveInt | None = None
    """Length in steps; null: given by train.epochs."""
    batch_size: PositiveInt = 64
    """Images of a whole step, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """Parts of a step that each process computes one after the other, to save memory."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Precision of the networks' arithmetic; auto: what this machine multiplies faster."""
    compile: bool = False
    """Fuse the work within blocks by torch.compile."""
    checkpoint_blocks: bool = False
    """Compute blocks again on the way back: a fifth of the memory for each image, for a seventh more operations."""
    parallel: Literal["ddp", "sharded"] = "ddp"
    """What each of several processes holds: all of the networks, or its share of every parameter (FSDP)."""
    log_every: PositiveInt = 10
    """Steps from one logged step to the next."""
    checkpoint_every: PositiveInt = 500
    """Steps from one checkpoint to the next; the last step is always saved."""
    probe_every: PositiveInt | None = None
    """Steps from one probe during training to the next; null: none."""
    whitening_images: PositiveInt = 1024
    """Training crops that the teacher's mean map and deviations are fitted to."""
    device: str | None = None
    """cpu, cuda or cuda:N; null: the GPU of this process where there is one, else the CPU."""
    threads: PositiveInt | None = None
    """CPU threads of a process; null: PyTorch's choice."""
    timeout_minutes: PositiveFloat = 10.0
    """Minutes that one of several processes waits for another before all give up."""
    loggers: tuple[LoggerName, ...] = ()
    """Loggers beside the run folder, which every run has."""

    @field_validator("loggers", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps; raises `BadInput` unless exactly one of epochs and steps is given."""
        if (self.epochs is None) == (self.steps is None):
            raise BadInput("give one of train.epochs and train.steps (the other one as null)")
        return self.steps if self.steps is not None else max(1, round((self.epochs or 0) * steps_per_epoch))


@configuration
class EvaluationConfig:
    """How frozen encoders are probed; limits take an even spread over the data."""

    which: Literal["target", "context", "single"] = "target"
    """Encoder to probe; single: that of a file which does not say which one it holds."""
    train_images: PositiveInt | None = None
    """Most training images that are read; null: all, in probes during training 1024."""
    val_images: PositiveInt | None = None
    """Most validation images that are read; null: all, in probes during training 512."""
    batch_size: PositiveInt = 64
    """Images that are encoded at a time."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Precision of the encoder's arithmetic; auto: what this machine multiplies faster."""
    neighbours: tuple[PositiveInt, ...] = (10, 20, 100)
    """Numbers of nearest neighbours of kNN, a column each; the middle one ranks checkpoints."""
    linear_protocol: Literal["convex", "sweep"] = "convex"
    """Linear probe: logistic regression on the last layer, or the I-JEPA paper's sweep over settings."""
    probe_epochs: PositiveInt = 100
    """Epochs of that sweep and of the mlp probe."""
    attentive_epochs: PositiveInt = 20
    """Epochs of the attentive probe."""
    attentive_lr: PositiveFloat = 1e-3
    """Peak learning rate of the attentive probe, on batches of 128 images."""
    gate_steps: NonNegativeInt = 2000
    """Most steps of each head that `diagnose --gates` overfits; 0: no such gates."""
    cell_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of a cell's pixels that need depth, or a normal, for it to count in their probes; 0.02 for sparse lidar."""
    fit_on: str | None = None
    """Data whose training images the depth probe is fitted on, or a cache of metres of photographs; null: its own."""
    judge_training: bool = False
    """Judge the depth probe on the training images too, on which nothing is fitted where fit_on names other data."""
    depth_readout: Literal["ridge", "linear", "linear4", "dpt"] = "ridge"
    """Readout of the depth probe: ridge regression, or one trained pixel by pixel."""
    depth_steps: PositiveInt = 2000
    """Steps of a depth readout other than ridge, on batches of 16 images."""
    nearest: PositiveFloat | None = None
    """Nearest depth of such a readout [m]; nearer does not count. Null: fits the training depths, and all count."""
    farthest: PositiveFloat | None = None
    """Farthest depth of such a readout [m]; farther does not count. Null: as for nearest."""
    teacher_row: bool = True
    """Whether a guided run's depth probe asks its teacher network about 500 training images and all others: a row."""
    segment_readout: Literal["linear", "linear4"] = "linear"
    """Layers that the linear readout of the segmentation probe reads: the last one, or four at equal distances."""
    segment_steps: PositiveInt = 2000
    """Steps of that readout, on batches of 16 images."""
    pictures: PositiveInt = 6
    """Images that are drawn in pictures of a run and its probes."""

    @field_validator("neighbours", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value

    @field_validator("neighbours")
    @classmethod
    def _neighbours_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not 0 < len(value) == len(set(value)):
            raise ValueError("give at least one number, and each only once")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _range_ascends(self) -> EvaluationConfig:
        if self.judge_training and self.fit_on is None:
            raise ValueError("judge_training=true needs fit_on: without it readouts are fitted on the training images")
        if self.nearest is not None and self.farthest is not None and self.nearest >= self.farthest:
            raise ValueError(f"nearest={self.nearest:g} m must be less than farthest={self.farthest:g} m")
        return self


@configuration
class RunConfig:
    """Everything that determines a run."""

    name: str = "run"
    """Name of the run in tables and reports; of a recipe by default its file's name."""
    seed: NonNegativeInt = 0
    """Seed of weights, order, crops and masks."""
    about: About = field(default_factory=About)
    data: DataConfig = field(default_factory=DataConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    init: InitConfig = field(default_factory=InitConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    guidance: Guidance = field(default_factory=NoGuidance)
    """Whether depth guides, and how; each kind has keys of its own."""
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not value.strip() or value.startswith(".") or "/" in value:
            raise ValueError("the name is to name a folder: no / in it, no . at its beginning")
        return value

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; raises `BadInput` where patches do not divide the image."""
        height, width = self.data.size
        patch = self.model.patch_size
        if height % patch or width % patch:
            near = tuple(max(patch, round(side / patch) * patch) for side in (height, width))
            raise BadInput(
                f"model.patch_size={patch} does not divide data.image_size={height} x {width}: "
                f"the nearest size that it divides is {near[0]} x {near[1]}"
            )
        return height // patch, width // patch

    @property
    def target_cells(self) -> tuple[int, int]:
        """Rows and columns of what guides: two latent cells a patch along each side, or every pixel."""
        if self.train.objective == "supervised":
            return CELLS * self.grid[0], CELLS * self.grid[1]
        return self.guidance.cells(self.grid, self.data.size)


@configuration
class TeacherFitConfig:
    """Everything that determines how a compact teacher is fitted (`depthjepa fit-teacher`)."""

    seed: NonNegativeInt = 0
    """Seed of weights, order, crops and noise."""
    data: DataConfig = field(default_factory=DataConfig)
    fit: FitConfig = field(default_factory=FitConfig)


# What crops of RGB-D pairs a compact teacher learns from, unless it is told otherwise.
FIT_DEFAULTS: Mapping[str, Any] = {"data": {"image_size": 128, "crop_scale": [0.25, 1.0], "flip": True}}

# Where and how a run is carried out, not what it computes: these may change on resume.
CIRCUMSTANCES = (
    "data.workers",
    "data.memory_gib",
    "data.cache",
    "data.cache_gib",
    "train.timeout_minutes",
    "train.parallel",
    "train.loggers",
    *(f"{part}.{key}" for part in ("train", "fit") for key in ("device", "threads")),
)

# Where the data of a run and its teacher lie: these may change on resume when what is there is known to be the same.
PLACES = (
    *("data.root", "data.val_list", "data.scene_textures"),
    *("guidance.cache", "guidance.teacher_checkpoint", "guidance.teacher_vae"),
)


def to_mapping(config: RunConfig | TeacherFitConfig) -> dict[str, Any]:
    """Return the resolved configuration as nested plain values."""
    content: dict[str, Any] = plain(dataclasses.asdict(config))
    return content


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which two resolved configurations ask for different runs; circumstances and `about` do not."""
    one, other = flatten(first), flatten(second)
    changed = (key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return sorted(key for key in changed if key not in CIRCUMSTANCES and not key.startswith("about."))


def types(kind: Any, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """All dotted keys of a configuration class with the types that each may have.

    Where a part is one of several classes, those of all.
    """
    found: dict[str, tuple[Any, ...]] = {}
    hints = get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        hint = hints[entry.name]
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        parts = [each for each in choices if dataclasses.is_dataclass(each)]
        for part in parts:
            for key, its in types(part, f"{prefix}{entry.name}.").items():
                found[key] = (*found.get(key, ()), *its)
        if not parts:
            found[prefix + entry.name] = choices
    return found


def keys(kind: Any) -> list[str]:
    """All dotted keys of a configuration class; where a part is one of several classes, those of all."""
    return list(types(kind))
