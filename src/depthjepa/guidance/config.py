"""Configuration of guidance: none, by the latents of a teacher (feature), or by depth pixel by pixel (pixel).

`kind` says which. Each kind has keys of its own; a key of another kind is refused by name.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from depthjepa.depth import Numbers
from depthjepa.guidance.target import CLIP, Centre
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.model.heads.head import CELLS, Fill
from depthjepa.model.heads.table import LATENT_HEADS, PIXEL_HEADS
from depthjepa.settings import are_sides, configuration

TWO_THIRDS = 2 / 3  # of the encoder's depth: what a pass over the whole image reads where nothing else is asked for
LONG = "long:"  # begins the size of images in their own proportions

Teacher = Annotated[str, AfterValidator(TEACHERS.check), WithJsonSchema({"enum": TEACHERS.names})]
FeatureHead = Annotated[str, AfterValidator(LATENT_HEADS.check), WithJsonSchema({"enum": LATENT_HEADS.names})]
PixelHead = Annotated[str, AfterValidator(PIXEL_HEADS.check), WithJsonSchema({"enum": PIXEL_HEADS.names})]
Control = Literal["none", "image", "random", "another", "mean"]
Schedule = Literal["constant", "released", "late"]
Direction = Literal["nearer", "farther", "undirected"]  # of a larger number
Unit = Literal["metres", "1/metres", "relative"]
LONG_SIDE = rf"{LONG}[1-9][0-9]*"
Colour = tuple[float, float, float]  # a number for red, green and blue
Share = Annotated[float, Field(ge=0, le=1)]


def share_of_weight(schedule: Schedule, turn: tuple[float, float], progress: float) -> float:
    """What of guidance's weight holds when `progress` of a run (0 to 1) is done.

    `released` goes from 1 to 0 and `late` from 0 to 1, linearly from turn[0] to turn[1]; at once where both are equal.
    """
    if schedule == "constant":
        return 1.0
    begin, end = turn
    turned = float(progress >= end) if progress >= end or progress < begin else (progress - begin) / (end - begin)
    return turned if schedule == "late" else 1 - turned


def refuse_backward(turn: tuple[float, float]) -> None:
    """Raise `ValueError` for a turn that ends before it begins."""
    if turn[0] > turn[1]:
        raise ValueError(f"turn={list(turn)}: it ends before it begins; give the two shares in ascending order")


@configuration
class NoGuidance:
    """I-JEPA by itself."""

    kind: Literal["none"] = "none"
    """I-JEPA by itself."""

    def cells(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns on which depth is judged all the same: two cells a patch along each side."""
        return CELLS * grid[0], CELLS * grid[1]


@configuration
class FeatureGuidance:
    """Guidance by the latents of a frozen teacher (paper, section 4.2.3).

    `teacher` is a row of `teachers.table`: ground truth turned into latents, or a frozen network. A cache holds latents
    of whole images, from which those of crops are cut; the network is not needed then. `control` and `detached` make
    twins that show what depth itself did. `read` and `depth_share` say which tokens give the latents (see
    `guidance.feature`); the paper's are `predicted`. `beside` guides by two targets at once: another one of the
    teacher's shape stands beside it and has outputs of the head for itself.
    """

    kind: Literal["feature"] = "feature"
    """Guided by the latents of a teacher."""
    weight: NonNegativeFloat = 1.0
    """Weight of the guidance loss beside the latent loss."""
    head: FeatureHead = "linear"
    """Head from tokens to latents."""
    fill: Fill = "zero"
    """What stands where a patch has no token; learned needs head=conv."""
    read: Literal["predicted", "context", "dense", "both"] = "dense"
    """Tokens read: context and predicted ones put together, context alone, the whole image's, or first and third."""
    depth_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer of the encoder that is read, as a share of its depth; below 1 read=dense or context; null: 2/3 if dense."""
    whiten: bool = True
    """Take the mean map of the training set from the target, and divide by its deviation; false: as it is (paper)."""
    schedule: Schedule = "constant"
    """How the weight goes over the run: constant, released (from whole to 0) or late (from 0 to whole)."""
    turn: tuple[Share, Share] = (0.4, 0.6)
    """Shares of the run between which the weight of a schedule that is not constant changes, linearly."""
    teacher: Teacher = TEACHERS.names[0]
    """Teacher whose latents guide."""
    teacher_checkpoint: str | None = None
    """Weights of a teacher that comes without: a file, a folder or a hub id, as it takes them."""
    teacher_vae: str | None = None
    """Autoencoder of depthfm: a folder or a hub id."""
    teacher_steps: PositiveInt = 2
    """Euler steps of depthfm and depthfm-tiny."""
    teacher_attention: Literal["plain", "rescaled"] = "plain"
    """Attention of depthfm and depthfm-tiny: as the released code computes it with xformers, or without."""
    teacher_seed: NonNegativeInt = 0
    """Seed of the noise of depthfm and depthfm-tiny."""
    teacher_output: str = "depth"
    """What a network gives: depth (DepthFM: before decoding), features (DepthFM: middle block), an output of onnx."""
    teacher_direction: Direction | None = None
    """What a larger number of an onnx file's output means; null: what its name or the JSON beside the file says."""
    teacher_unit: Unit | None = None
    """Unit of an onnx file's output; null: what the JSON beside the file says, else relative, of no known scale."""
    teacher_mean: Colour | None = None
    """Taken from images in [0, 1] for an onnx file, one number a colour; null: what the JSON says, else nothing."""
    teacher_deviation: Colour | None = None
    """What images for an onnx file are then divided by; null: what the JSON beside the file says, else 1."""
    teacher_multiple: PositiveInt | None = None
    """Of what the sides of images for an onnx file are multiples [px]; null: what the JSON says, else 32."""
    teacher_layer: int | None = None
    """Block of huggingface's features, from 0, negative from the end; null: two thirds deep."""
    teacher_size: PositiveInt | tuple[PositiveInt, PositiveInt] | str = 512
    """Whole images of a cache [px]: a side, height and width, or long:640, their own proportions by the longer side."""
    cache: str | None = None
    """Folder of latents that `depthjepa teach` wrote; null: the teacher is asked about every crop."""
    control: Control = "none"
    """What stands in the teacher's place: the image itself, a random network, another image's latents, the mean map."""
    beside: Literal["none", "image", "random", "another"] = "none"
    """A second target beside the teacher's, as control has it: the image itself, a random network, another image's."""
    beside_weight: NonNegativeFloat = 1.0
    """Weight of the second target's loss as a multiple of the first one's."""
    detached: bool = False
    """The head learns, but its gradient stops before encoder and predictor."""

    @field_validator("teacher_size", mode="before")
    @classmethod
    def _a_size(cls, value: object) -> object:
        if not are_sides(value) and not (isinstance(value, str) and re.fullmatch(LONG_SIDE, value)):
            raise ValueError(f"should be one side [px], height and width as [192, 640], or {LONG}640")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureGuidance:
        refuse_backward(self.turn)
        if self.layer_share < 1 and self.read in ("predicted", "both"):
            raise ValueError(
                f"depth_share={self.layer_share:g} is of the encoder's layers, and predicted tokens are of the last "
                f"one: choose guidance.read=dense or context"
            )
        if self.control != "none" and self.control == self.beside:
            raise ValueError(f"control={self.control} and beside={self.beside} are the same target twice")
        return self

    def cells(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the target: two latent cells a patch along each side."""
        return CELLS * grid[0], CELLS * grid[1]

    def whole_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width [px] at which a teacher sees a whole image of these sides for a cache."""
        match self.teacher_size:
            case int():
                return self.teacher_size, self.teacher_size
            case str():
                scale = int(self.teacher_size.removeprefix(LONG)) / max(height, width)
                return max(1, round(scale * height)), max(1, round(scale * width))
            case _:
                return self.teacher_size

    @property
    def layer_share(self) -> float:
        """Layer of the encoder that is read, as a share of its depth, also where none is asked for."""
        if self.depth_share is None:
            return TWO_THIRDS if self.read == "dense" else 1.0
        return self.depth_share

    @property
    def reads_holes(self) -> bool:
        """Whether what stands where a patch has no token reaches a judged cell."""
        return self.read != "dense" and bool(LATENT_HEADS.load(self.head).reads_beside)

    @property
    def centre(self) -> Centre:
        """What whitening takes from the target: the mean map, of which nothing can be learned then."""
        if not self.whiten:
            return "nothing"
        return "mean" if self.control == "mean" else "map"

    @property
    def clip(self) -> float:
        """Deviations beyond which the target is cut off; a target that is not whitened is not."""
        return CLIP if self.whiten else math.inf


@configuration
class PixelGuidance:
    """Guidance by depth files, pixel by pixel (paper, section 4.2.2).

    `read`, `scope` and `layers` say which tokens the head reads (see `guidance.pixel`). Of log and disparity the
    training set's mean map is taken, and they are divided by their deviation; the paper has metres. `loss` and
    `gradient` are explained in `losses.depth_loss`. Depth divided by the crop's zoom is what its pixels can tell; the
    paper takes the metres of the file. `sky`: what nothing measured is to be no nearer than the highest measurement
    below it.
    """

    kind: Literal["pixel"] = "pixel"
    """Guided by depth, pixel by pixel."""
    weight: NonNegativeFloat = 1.0
    """Weight of the guidance loss beside the latent loss."""
    head: PixelHead = "mlp"
    """Head from tokens to pixels."""
    head_width: PositiveInt = 256
    """Width of the head's hidden layers, at most the tokens' width."""
    fill: Fill = "zero"
    """What stands where a patch has no token."""
    read: Literal["predicted", "dense", "both"] = "dense"
    """Tokens that the head reads: predicted ones, those of the whole image, or both."""
    scope: Literal["target", "full"] = "full"
    """Patches that are read beside predicted tokens: target patches alone, or context ones as well."""
    layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    """Layers of the encoder that are read, as shares of its depth; 1: the last one."""
    schedule: Schedule = "constant"
    """How the weight goes over the run: constant, released (from whole to 0) or late (from 0 to whole)."""
    turn: tuple[Share, Share] = (0.4, 0.6)
    """Shares of the run between which the weight of a schedule that is not constant changes, linearly."""
    target: Numbers = "log"
    """Numbers that the head says of a pixel: metres, their logarithm, or 1 / metres."""
    loss: Literal["l1", "sig", "ssi"] = "l1"
    """Absolute difference, scale-invariant loss of logarithms, or absolute difference after scale and shift."""
    gradient: NonNegativeFloat = 0.5
    """Weight of the gradient loss (MiDaS's)."""
    sky: NonNegativeFloat = 0.0
    """Weight of the bound on what nothing measured above the highest measurement of a column: no nearer than that."""
    zoom_aware: bool = True
    """Depth is divided by the crop's zoom."""
    nearest: PositiveFloat = 0.1
    """Nearest depth that counts [m]."""
    farthest: PositiveFloat = 100.0
    """Farthest depth that counts [m]."""
    detached: bool = False
    """The head learns, but its gradient stops before encoder and predictor."""

    @model_validator(mode="after")
    def _fits_together(self) -> PixelGuidance:
        refuse_backward(self.turn)
        if self.nearest >= self.farthest:
            raise ValueError(f"nearest={self.nearest:g} m must be less than farthest={self.farthest:g} m")
        if self.loss == "sig" and self.target != "log":
            raise ValueError(f"loss=sig compares logarithms: it needs target=log, not {self.target}")
        if self.loss == "ssi" and self.sky:
            raise ValueError(f"sky={self.sky:g} compares depths, of which loss=ssi knows no scale: choose l1 or sig")
        if not self.layers or sorted(set(self.layers)) != list(self.layers):
            raise ValueError("layers: name at least one, in ascending order, each only once")
        return self

    def cells(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the target: every pixel."""
        return size

    @property
    def reads_holes(self) -> bool:
        """Whether what stands where a patch has no token reaches a judged pixel."""
        return self.read != "dense" and bool(PIXEL_HEADS.load(self.head).reads_beside)

    @property
    def centre(self) -> Centre:
        """What whitening takes from the target: nothing where it is to be the number itself."""
        if self.target == "metres":
            return "nothing"
        # A map taken from the truth is not free of scale and shift.
        return "mean" if self.loss == "ssi" else "map"

    @property
    def clip(self) -> float:
        """Nothing is cut off: a depth that is far off is to cost what it costs."""
        return math.inf


Guidance = Annotated[NoGuidance | FeatureGuidance | PixelGuidance, Field(discriminator="kind")]
KINDS = {"none": NoGuidance, "feature": FeatureGuidance, "pixel": PixelGuidance}
