"""Guidance: its configuration, and the heads from the reassembled token grid to a teacher's latents.

`conv` is the paper's small CNN (section 4.2.3); it reads the whole grid, holes included, and is judged on every
cell. `linear` reads each token by itself (layer norm, one linear layer) and is judged only where a token stands:
it can neither recover the position from padding nor fill holes by guessing (see the shortcut, paper section 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass as configuration
from torch import Tensor, nn
from torch.nn import functional as F

from depthjepa.grid import to_map, unfold_cells
from depthjepa.model.decoders import Kind

CELLS = 2  # the teacher's latents have this many cells a patch along each side
HEADS = {"feature": ("linear", "conv"), "pixel": ("mlp", "cnn", "deep-cnn", "dpt")}

FeatureHead = Literal["linear", "conv"]
Centre = Literal["map", "mean", "nothing"]
Control = Literal["none", "image", "random", "another", "mean"]


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class GuidanceConfig:
    """Whether and how depth guides: by the latents of a frozen depth network (feature), or pixel by pixel.

    Feature guidance. `teacher` is `depth`, ground truth turned into latents, or a frozen network: `depthfm`, which
    needs `teacher_checkpoint` (released as depthfm-v1.ckpt) and `teacher_vae` (a folder or hub id), `depthfm-tiny`, a
    small one of its kind that comes with this package, or `huggingface`, any depth network of transformers
    (`teacher_checkpoint`: a folder or hub id). `teacher_output` is their depth (DepthFM: before decoding) or features:
    of DepthFM's middle block, or of `teacher_layer`. `cache` is a folder that `depthjepa teach` wrote: latents of whole
    images of `teacher_size` x `teacher_size` px, from which those of crops are cut; the network is not needed then.
    `control` and `detached` make twins that show what depth itself did.

    Pixel guidance, by depth files. `read`, `scope` and `layers` say which tokens the head reads (see
    `model.pixel_guidance`), `target` what it says of a pixel: metres as the paper has it; log or disparity, of which
    the training set's mean map is taken and which are divided by their deviation; or the expectation over `bins` equal
    parts of the range, compared as logarithms. `loss` and `gradient` are explained in `losses.depth_loss`. With
    `zoom_aware` depth is divided by the crop's zoom, which is what its pixels can tell; the paper takes the metres of
    the file. Depth outside of `nearest` to `farthest` [m] does not count. `norm` acts on the tokens before the head.
    `sky` is the weight of what nothing measured above the highest measurement of a column: it is to be no nearer.
    """

    kind: Literal["none", "feature", "pixel"] = "none"
    weight: NonNegativeFloat = 1.0
    head: Literal["linear", "conv", "mlp", "cnn", "deep-cnn", "dpt"] | None = None  # None: linear; pixel: mlp
    fill: Literal["zero", "learned"] = "zero"
    teacher: Literal["depth", "depthfm", "depthfm-tiny", "huggingface"] = "depth"
    teacher_checkpoint: str | None = None
    teacher_vae: str | None = None
    teacher_steps: PositiveInt = 2  # Euler steps of depthfm
    teacher_attention: Literal["plain", "rescaled"] = "plain"
    teacher_seed: int = 0  # of depthfm's noise
    teacher_output: Literal["depth", "features"] = "depth"
    teacher_layer: int | None = None  # of huggingface's features; None: two thirds deep
    teacher_size: PositiveInt = 512
    cache: str | None = None
    control: Control = "none"  # what stands in the teacher's place (see `teachers.controls`)
    detached: bool = False  # the head learns, and its gradient stops before encoder and predictor
    read: Literal["predicted", "dense", "both"] = "dense"
    scope: Literal["target", "full"] = "full"
    layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)  # depths of the encoder as shares of its blocks
    norm: Literal["none", "layer", "batch"] = "none"
    head_width: PositiveInt = 256  # of hidden layers, at most the token's width
    target: Literal["metres", "log", "disparity", "bins"] = "log"
    bins: Annotated[int, Field(ge=2)] = 256
    loss: Literal["l1", "sig", "ssi"] = "l1"
    gradient: NonNegativeFloat = 0.5  # MiDaS's weight
    sky: NonNegativeFloat = 0.0
    zoom_aware: bool = True
    nearest: PositiveFloat = 0.1
    farthest: PositiveFloat = 100.0

    @model_validator(mode="after")
    def _fits_together(self) -> GuidanceConfig:
        if self.nearest >= self.farthest:
            raise ValueError(f"nearest={self.nearest:g} m must be less than farthest={self.farthest:g} m")
        if self.head is not None and self.kind != "none" and self.head not in HEADS[self.kind]:
            raise ValueError(f"head={self.head} is not for kind={self.kind}: choose from {', '.join(HEADS[self.kind])}")
        if self.control != "none" and self.kind != "feature":
            raise ValueError(f"control={self.control} stands in a teacher's place: it needs kind=feature")
        if self.loss == "sig" and self.target not in ("log", "bins"):
            raise ValueError(f"loss=sig compares logarithms: it needs target=log or bins, not {self.target}")
        if self.loss == "ssi" and self.sky:
            raise ValueError(f"sky={self.sky:g} compares depths, of which loss=ssi knows no scale: choose l1 or sig")
        if not self.layers or sorted(set(self.layers)) != list(self.layers):
            raise ValueError("layers: name at least one, in ascending order, each only once")
        return self

    @property
    def feature_head(self) -> FeatureHead:
        """The head of feature guidance."""
        return "conv" if self.head == "conv" else "linear"

    @property
    def pixel_head(self) -> Kind:
        """The head of pixel guidance."""
        if self.head is None or self.head == "linear" or self.head == "conv":
            return "mlp"
        return self.head

    @property
    def centre(self) -> Centre:
        """What is taken from the target: nothing where it is to be the number itself."""
        if self.kind == "feature":
            return "mean" if self.control == "mean" else "map"
        if self.target in ("metres", "bins"):
            return "nothing"
        # A map taken from the truth is not free of scale and shift.
        return "mean" if self.loss == "ssi" else "map"


@dataclass(frozen=True, slots=True)
class Latents:
    """What a teacher says of a batch, at twice the patch grid (or pixel by pixel).

    Invalid values may be anything, except where `bound` says that the truth is at least as far as they are.
    """

    values: Float[Tensor, "b c rows cols"]
    valid: Bool[Tensor, "b c rows cols"]
    bound: Bool[Tensor, "b c rows cols"] | None = None


class GuidanceHead(nn.Module):
    """Project the token grid to `channels` latents, [b, n, d] and coverage [b, n] to [b, channels, 2rows, 2cols].

    Patches without a token are zero, or one learned token (`fill`).
    """

    def __init__(self, kind: FeatureHead, fill: Literal["zero", "learned"], width: int, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.fill = nn.Parameter(torch.zeros(1, 1, width)) if fill == "learned" else None
        if kind == "linear":
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.project = nn.Linear(width, channels * CELLS**2)
        else:
            hidden = min(width, 256)
            self.gather = nn.Conv2d(width, hidden, 3, padding=1)
            self.refine = nn.Conv2d(hidden, hidden, 3, padding=1)
            self.project_cells = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(
        self, tokens: Float[Tensor, "b n d"], coverage: Float[Tensor, "b n"], grid: tuple[int, int]
    ) -> Float[Tensor, "b c rows cols"]:
        if self.fill is not None:
            tokens = torch.where(coverage[..., None] > 0, tokens, self.fill.to(tokens.dtype))
        if self.kind == "linear":
            return unfold_cells(self.project(self.norm(tokens)), grid, CELLS)
        maps = F.gelu(self.gather(to_map(tokens, grid)))
        maps = F.interpolate(maps, scale_factor=CELLS, mode="bilinear", align_corners=False)
        latents: Tensor = self.project_cells(F.gelu(self.refine(maps)))
        return latents

    def judged(self, coverage: Float[Tensor, "b n"], grid: tuple[int, int]) -> Bool[Tensor, "b 1 rows cols"]:
        """Cells on which the head's output counts."""
        covered = to_map(coverage[..., None], grid) > 0
        covered = covered.repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3)
        return covered if self.kind == "linear" else torch.ones_like(covered)
