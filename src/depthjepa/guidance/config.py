"""Configuration of guidance: none, by the latents of a teacher (feature), or by depth pixel by pixel (pixel).

`kind` says which. Each kind has keys of its own; a key of another kind is refused by name.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from depthjepa.depth import Numbers
from depthjepa.guidance.target import CLIP, Centre
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.model.decoders import CELLS, FeatureHead, PixelHead
from depthjepa.settings import configuration

Control = Literal["none", "image", "random", "another", "mean"]


@configuration
class NoGuidance:
    """I-JEPA by itself."""

    kind: Literal["none"] = "none"  # what guides

    def cells(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns on which depth is judged all the same: two cells a patch along each side."""
        return CELLS * grid[0], CELLS * grid[1]


@configuration
class FeatureGuidance:
    """Guidance by the latents of a frozen teacher (paper, section 4.2.3).

    `teacher` is a row of `teachers.table`: ground truth turned into latents, or a frozen network. `teacher_output` is a
    network's depth (DepthFM: before decoding) or its features: of DepthFM's middle block, or of `teacher_layer`.
    `cache` is a folder that `depthjepa teach` wrote: latents of whole images of `teacher_size` x `teacher_size` px,
    from which those of crops are cut; the network is not needed then. `control` and `detached` make twins that show
    what depth itself did. `read` stands in the files of a run, so that they say what it read when there is a choice.
    """

    kind: Literal["feature"] = "feature"  # what guides
    weight: NonNegativeFloat = 1.0  # of the guidance loss beside the latent loss
    head: FeatureHead = "linear"  # from tokens to latents
    fill: Literal["zero", "learned"] = "zero"  # what stands where a patch has no token; learned needs head=conv
    read: Literal["predicted"] = "predicted"  # tokens that the head reads: context and predicted ones, put together
    teacher: Annotated[str, AfterValidator(TEACHERS.check)] = TEACHERS.names[0]  # whose latents guide
    teacher_checkpoint: str | None = None  # weights of the teacher: a file, a folder or a hub id, as it takes them
    teacher_vae: str | None = None  # autoencoder of depthfm: a folder or a hub id
    teacher_steps: PositiveInt = 2  # Euler steps of depthfm
    teacher_attention: Literal["plain", "rescaled"] = "plain"  # of depthfm: with xformers, or without
    teacher_seed: int = 0  # of depthfm's noise
    teacher_output: Literal["depth", "features"] = "depth"  # what a network gives
    teacher_layer: int | None = None  # block of huggingface's features; None: two thirds deep
    teacher_size: PositiveInt = 512  # side [px] of the whole images that a cache is made of
    cache: str | None = None  # folder of latents; None: the teacher is asked about every crop
    control: Control = "none"  # what stands in the teacher's place
    detached: bool = False  # the head learns, and its gradient stops before encoder and predictor

    def cells(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the target: two latent cells a patch along each side."""
        return CELLS * grid[0], CELLS * grid[1]

    @property
    def centre(self) -> Centre:
        """What whitening takes from the target: the mean map, of which nothing can be learned then."""
        return "mean" if self.control == "mean" else "map"

    @property
    def clip(self) -> float:
        """Deviations beyond which the target is cut off."""
        return CLIP


@configuration
class PixelGuidance:
    """Guidance by depth files, pixel by pixel (paper, section 4.2.2).

    `read`, `scope` and `layers` say which tokens the head reads (see `guidance.pixel`), `target` what it says of a
    pixel: metres as the paper has it; log or disparity, of which the training set's mean map is taken and which are
    divided by their deviation. `loss` and `gradient` are explained in `losses.depth_loss`. With `zoom_aware` depth is
    divided by the crop's zoom, which is what its pixels can tell; the paper takes the metres of the file. `sky` is the
    weight of what nothing measured above the highest measurement of a column: it is to be no nearer.
    """

    kind: Literal["pixel"] = "pixel"  # what guides
    weight: NonNegativeFloat = 1.0  # of the guidance loss beside the latent loss
    head: PixelHead = "mlp"  # from tokens to pixels
    head_width: PositiveInt = 256  # of the head's hidden layers, at most the token's width
    fill: Literal["zero", "learned"] = "zero"  # what stands where a patch has no token
    read: Literal["predicted", "dense", "both"] = "dense"  # predicted tokens, those of the whole image, or both
    scope: Literal["target", "full"] = "full"  # of what reads predicted tokens: hidden patches, or context ones as well
    layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)  # depths of the encoder as shares of its blocks
    target: Numbers = "log"  # numbers that the head says
    loss: Literal["l1", "sig", "ssi"] = "l1"  # by which they are compared
    gradient: NonNegativeFloat = 0.5  # weight of the gradient loss (MiDaS's)
    sky: NonNegativeFloat = 0.0  # weight of the bound on what lies above all measurements
    zoom_aware: bool = True  # depth is divided by the crop's zoom
    nearest: PositiveFloat = 0.1  # m; nearer depth does not count
    farthest: PositiveFloat = 100.0  # m; farther depth does not count
    detached: bool = False  # the head learns, and its gradient stops before encoder and predictor

    @model_validator(mode="after")
    def _fits_together(self) -> PixelGuidance:
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
