"""The field's depth readouts of frozen tokens, trained by gradient descent and judged pixel by pixel.

`linear`   batch norm and a 1 x 1 convolution on the last layer (DINOv2, DINOv3)
`linear4`  the same on four layers, side by side (DINOv2's Lin. 4): 3, 6, 9, 12 of 12, or 5, 12, 18, 24 of 24
`dpt`      the DPT head on the same four layers (Probe3D, El Banani et al. 2024)

Each gives every place the scores x of 256 equal bins between the nearest and the farthest depth; the depth is the mean
of the bins' centres, weighted (relu(x) + 0.1) / sum (DINOv2, after AdaBins), resized bilinearly to the image.

Where we differ. DINOv2 enlarges the tokens by 4 before the convolution: bilinear weights add up to 1, so its scores can
be enlarged instead, which is the same up to rounding and cheaper. Batch norm then sees the tokens as they are,
and needs no scale of its own before a linear map; it stands before the DPT head as well, whose initial weights are made
for inputs of about 1. There is no class token to add. SigLoss is taken image by image (see `losses.sig_loss`). DINOv2's
DPT head predicts depth by regression; Probe3D's has bins, as here. Views are whole images without augmentation, so that
tokens are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.data.groups import FOLDS, Division, Places
from depthjepa.data.samples import Batch
from depthjepa.depth import valid
from depthjepa.evaluation.decoded import pixels_of
from depthjepa.evaluation.depth_cells import MeanMap, Predict, training_maps
from depthjepa.evaluation.depth_probe import DepthTable, Told, evaluate_depth
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gradient_readouts import BATCH, Descent, best_readout, probed_depths
from depthjepa.evaluation.mean_maps import Maps
from depthjepa.evaluation.readout import patch_grid
from depthjepa.evaluation.table_rows import Row
from depthjepa.evaluation.tokens import ImageSet, Within, pairs_of
from depthjepa.faults import BadInput
from depthjepa.grid import to_map
from depthjepa.losses import depth_loss
from depthjepa.model.encoder import Encoder
from depthjepa.model.heads.dpt import DPT_LEVELS, DPTHead
from depthjepa.progress import task

Kind = Literal["linear", "linear4", "dpt"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BINS = 256
ENLARGED = 4  # times the patch grid, at which linear scores become depth
DPT_ENLARGED = 8  # the same where the DPT head ends
DPT_WIDTH = 256  # at most the tokens'
# Adam moves a weight by about its rate a step, and the 0.1 of 256 bins is little only beside scores of hundreds and
# more: DINOv3 goes 38,400 steps at 3e-4 with a thousand channels. Large scores change little, so large rates end well.
RATES: dict[Kind, tuple[float, ...]] = {"linear": (0.01, 0.1, 1.0), "linear4": (0.01, 0.1, 1.0), "dpt": (1e-3, 3e-3)}
HELD_OUT = 0  # the fold on which the rates are compared
# Probe3D weighs SigLoss 10 and its gradient loss 0.5. The latter is of pixels two apart, a sum over 2 axes and 4 scales
# (every 1st, 2nd, 4th and 6th pixel); ours is of neighbours, a mean over axes and scales (every 1st, 2nd, 4th and 8th).
# On an even slope their weight would be 0.69 of ours.
GRADIENT = 0.5
STRAY = 1e-3  # share of the training depths at either end that the range leaves out unless it is given
LOG_STEPS, LOG_ORIGIN, LOG_COUNT = 1000, 7000, 20000  # log depth in thousandths, from 0.9 mm to 440 km


@dataclass(frozen=True, slots=True)
class Plan:
    """How a readout is fitted: depth beyond `nearest` and `farthest` [m] does not count, None: all depth does."""

    kind: Kind
    size: tuple[int, int]  # of the views, and of the maps that are judged
    patch_size: int
    steps: int
    seed: int = 0
    nearest: float | None = None
    farthest: float | None = None
    pictures: int = 6
    widths: tuple[int, ...] | None = None  # of the layers that are read; None: all alike


def layers_of(kind: Kind, blocks: int) -> list[int]:
    """The blocks (0-based) of an encoder that a readout reads."""
    return [blocks - 1] if kind == "linear" else probed_depths(blocks)


def encode_layers(encoder: Encoder, layers: Sequence[int], device: torch.device, precision: str) -> Encode:
    """Turn an encoder into a function of RGB images in [0, 1] to the tokens of several layers, side by side."""
    encoder = encoder.to(device).eval()

    def encode(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        with runtime.precision(precision, device):
            levels = encoder.features(encoder.normalise(images.to(device)), layers)
        return torch.cat(levels, -1).float()

    return encode


def expected_depth(scores: Float[Tensor, "b bins h w"], centres: Float[Tensor, " bins"]) -> Float[Tensor, "b 1 h w"]:
    """Mean of the bins' centres [m], weighted (relu(score) + 0.1) / sum (DINOv2, after AdaBins)."""
    weights = F.relu(scores) + 0.1
    depth: Tensor = torch.einsum("bkhw,k->bhw", weights, centres) / weights.sum(1)
    return depth[:, None]


class BinReadout(nn.Module):
    """Tokens, the layers side by side, to the depth [m] of every pixel, within the range of the bins.

    `width` is that of all layers, `widths` those of each; None: all alike.
    """

    centres: Tensor

    def __init__(
        self, kind: Kind, width: int, nearest: float, farthest: float, widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.several = kind == "dpt"
        # Frozen tokens do not drift: their statistics are averaged over all steps.
        self.norm = nn.BatchNorm1d(width, affine=False, momentum=None)
        if self.several:
            self.widths = list(widths or [width // DPT_LEVELS] * DPT_LEVELS)
            self.scores: nn.Module = DPTHead(self.widths, BINS, DPT_ENLARGED, min(DPT_WIDTH, self.widths[-1]))
        else:
            self.scores = nn.Conv2d(width, BINS, 1)
            for parameter in self.scores.parameters():
                nn.init.normal_(parameter, std=0.01)
        edges = torch.linspace(nearest, farthest, BINS + 1, dtype=torch.float64)
        self.register_buffer("centres", ((edges[:-1] + edges[1:]) / 2).float())

    def forward(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], size: tuple[int, int]
    ) -> Float[Tensor, "b 1 h w"]:
        normed = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        if self.several:
            scores = self.scores([to_map(level, grid) for level in normed.split(self.widths, -1)])
        else:
            enlarged = (ENLARGED * grid[0], ENLARGED * grid[1])
            scores = F.interpolate(self.scores(to_map(normed, grid)), enlarged, mode="bilinear", align_corners=False)
        return F.interpolate(expected_depth(scores, self.centres), size, mode="bilinear", align_corners=False)

    def on(self, encode: Encode, patch_size: int) -> Predict:
        """Return the function from a batch to log depth [log m]: the encoder, then this readout."""

        def predict(batch: Batch) -> Float[Tensor, "b 1 h w"]:
            grid, size = patch_grid(batch.images, patch_size), (batch.images.shape[2], batch.images.shape[3])
            parts = [self(tokens, grid, size) for tokens in torch.split(encode(batch.images), BATCH)]
            return torch.cat(parts).log()

        return predict


def readout_tables(
    encoders: Mapping[str, Encode], train: ImageSet, val: ImageSet, places: Places, plan: Plan
) -> list[DepthTable]:
    """Fit a readout for every encoder on one set and score it on another, pixel by pixel, beside the guesses.

    A table for each of several data sets, and last that of all together, on all of which the readouts are fitted.
    `encoders` give the layers of `layers_of` side by side. Every row says in `rate` which peak rate was chosen; the
    range of the bins, to which all rows are clamped, is that of the mean map. Depth beyond a range that the plan gives
    does not count in either set; without one, the range is that of all but a thousandth of the training depths at
    either end, and all depth counts.

    Raises `BadInput` where depth is missing or there are too few images to choose a rate.
    """
    train, val = Within(train, plan.nearest, plan.farthest), Within(val, plan.nearest, plan.farthest)
    maps = _bounded_maps(train, places, plan)
    bounds = maps[-1].mean.nearest, maps[-1].mean.farthest
    rows: dict[str, Row] = {}
    rates: dict[str, str] = {}
    for name, encode in encoders.items():
        with task(name):
            readout, rate = fit(encode, train, places.folds, plan, *bounds)
        rows[name], rates[name] = Told(readout.on(encode, plan.patch_size)), f"{rate:g}"
    tables = evaluate_depth(rows, maps, places, val(), pictures=plan.pictures)
    for table in tables:
        for row in table.rows:
            row["rate"] = rates.get(str(row["name"]), "–")
    return tables


def _bounded_maps(train: ImageSet, places: Places, plan: Plan) -> list[Maps[MeanMap]]:
    """Mean and scene maps of every pixel, and the range of depths [m] that the bins stand for."""
    counts = torch.zeros(LOG_COUNT, dtype=torch.int64)

    def watched() -> Iterator[Batch]:
        for batch in train():
            assert batch.depth is not None
            known = batch.depth[valid(batch.depth)].double().cpu()
            steps = ((known.log() * LOG_STEPS).round().long() + LOG_ORIGIN).clamp(0, LOG_COUNT - 1)
            counts.add_(torch.bincount(steps, minlength=LOG_COUNT))
            yield batch

    found = training_maps(watched(), places, pixels_of, share=0.0)
    shares = counts.cumsum(0).double() / counts.sum()
    low, high = (math.exp((int((shares < s).sum()) - LOG_ORIGIN) / LOG_STEPS) for s in (STRAY, 1 - STRAY))
    nearest, farthest = plan.nearest or low, plan.farthest or high
    return [replace(each, mean=replace(each.mean, nearest=nearest, farthest=farthest)) for each in found]


def describe(plan: Plan, layers: Sequence[int], blocks: int, mean_map: MeanMap) -> str:
    """What a table's figures are of, for the sentence that says so; layers are counted from 1."""
    which = "layer" if len(layers) == 1 else "layers"
    head = (
        f"{plan.kind} readout of {which} {', '.join(str(layer + 1) for layer in layers)} of {blocks} "
        f"(batch norm, {'DPT head' if plan.kind == 'dpt' else '1 x 1 convolution'}) to {BINS} uniform bins"
    )
    given = [f"{name} given" for name in ("nearest", "farthest") if getattr(plan, name) is not None]
    bounds = f"{mean_map.nearest:.3g} to {mean_map.farthest:.3g} m ({' and '.join(given) or 'met in training'})"
    loss = f"SigLoss + {GRADIENT:g} x gradient loss" if plan.kind == "dpt" else "SigLoss"
    rates = ", ".join(f"{rate:g}" for rate in RATES[plan.kind])
    return (
        f"{head} from {bounds}, {loss}, {plan.steps} steps of {BATCH} images, AdamW, its peak rate chosen among "
        f"{rates} by a quarter of the steps and a fifth of the training data that shares no place with the rest"
    )


def fit(
    encode: Encode, train: ImageSet, folds: Division, plan: Plan, nearest: float, farthest: float
) -> tuple[BinReadout, float]:
    """Fit a readout with bins from `nearest` to `farthest` [m]; returns it with the peak rate that was chosen.

    The rate is the best on a fold of the training images, places that it did not see (`gradient_readouts`).
    """
    pairs, numbers = pairs_of(encode, train)
    aside = torch.from_numpy(folds.fold)[numbers] == HELD_OUT
    if not aside.any() or aside.all():
        raise BadInput(f"a depth probe needs at least {FOLDS} training images, and there are {len(numbers)}")
    descent = Descent(
        make=lambda width: BinReadout(plan.kind, width, nearest, farthest, plan.widths),
        loss=lambda readout, tokens, depth: readout_loss(readout, tokens, depth, plan),
        rates=RATES[plan.kind],
        steps=plan.steps,
        seed=plan.seed,
        stream="depth readout",
        what=f"{plan.kind} readout",
    )
    return best_readout(pairs, aside, descent)


def readout_loss(
    readout: BinReadout, tokens: Float[Tensor, "b n d"], depth: Float[Tensor, "b 1 h w"], plan: Plan
) -> Float[Tensor, ""]:
    """Loss of log depth over pixels with depth, at the size of the image: SigLoss, for dpt with the gradient loss."""
    known = valid(depth)
    found = readout(tokens, (plan.size[0] // plan.patch_size, plan.size[1] // plan.patch_size), plan.size)
    gradient = GRADIENT if plan.kind == "dpt" else 0.0
    return depth_loss(found.log(), torch.where(known, depth, 1).log(), known, "sig", gradient)
