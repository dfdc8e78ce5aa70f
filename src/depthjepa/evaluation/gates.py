"""Gates: cheap tests that tell why depth does not decode, in the order in which a fault would spoil what follows.

floor        does a readout of the frozen encoder beat the mean map at all
overfit      can every head, trained end to end on a few images, repeat them: if not, it is a fault of code or capacity
position     do tokens say where their patch lies
input swap   the same readout on the target encoder's tokens, predicted tokens, raw patches, a random encoder
layers       the same readout after every block

Readouts are the depth probe's ridge. A gate has one figure, what is wanted of it, and whether it passed; a gate that
fails names a cause.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthjepa import optim, runtime
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.depth import disparity, r2_within, valid
from depthjepa.evaluation.decoded import dense_metres, pixel_guide, predicted_metres
from depthjepa.evaluation.depth_cells import CellMeans, cells_of
from depthjepa.evaluation.depth_probe import depth_table
from depthjepa.evaluation.depth_readouts import encode_layers
from depthjepa.evaluation.features import Encode, OfBatch, tokens_of
from depthjepa.evaluation.gathering import RANDOM, RAW, Views, encode_with, places_in, raw_patches
from depthjepa.evaluation.ridge import Ridge
from depthjepa.fitting import update
from depthjepa.grid import reassemble
from depthjepa.guidance.config import NoGuidance, PixelGuidance
from depthjepa.guidance.target import Whitening
from depthjepa.masks import Masks, sample_masks
from depthjepa.method import build_encoder, build_method, build_target, build_teacher
from depthjepa.model.heads.table import PIXEL_HEADS
from depthjepa.model.jepa import JEPA
from depthjepa.model.vit import VisionTransformer
from depthjepa.progress import track
from depthjepa.warm_start import take_over

IMAGES = 8
WANTED = 0.95  # R2 within images of the overfitted
ENOUGH = 0.97  # training stops there
LOOK_EVERY = 100  # steps
DRAWS = 4  # of masks that the overfitted are judged under
LR = 2e-3
POSITION = 0.9
POSITION_IMAGES = 128
POSITION_STRENGTH = 1e-4  # of the ridge
MARGIN = 0.02
HEAD_WIDTH = 128  # of the hidden layers of heads that are overfitted

Kind = Literal["floor", "position", "swap", "layer", "overfit"]
TITLES: dict[Kind, str] = {
    "floor": "floor",
    "position": "position",
    "swap": "input swap",
    "layer": "layers",
    "overfit": "overfit",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """One test of what `of` names: `figure` is to be at least `wanted` (None: it stands beside others, cannot fail)."""

    kind: Kind
    of: str
    figure: float
    wanted: float | None = None

    @property
    def name(self) -> str:
        """For people: `input swap: raw patches`."""
        return f"{TITLES[self.kind]}: {self.of}"

    @property
    def passed(self) -> bool | None:
        """Whether it did."""
        return None if self.wanted is None else self.figure >= self.wanted

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        passed = {None: "", True: "yes", False: "NO"}[self.passed]
        named = {"name": self.name, "gate": self.kind, "of": self.of}
        return {**named, "figure": self.figure, "wanted": self.wanted, "passed": passed}


def few(config: RunConfig, split: Split, limit: int) -> Views:
    """Views of an even spread of at most `limit` images, in one batch."""
    evaluation = replace(config.evaluation, train_images=limit, val_images=limit, batch_size=limit)
    return Views(replace(config, evaluation=evaluation), split)


def readout_gates(
    config: RunConfig, saved: Checkpoint, encoder: VisionTransformer, train: Views, val: Views, device: torch.device
) -> tuple[list[Gate], list[str]]:
    """Floor, input swap and layer sweep, and what they say in words."""
    encoder = encoder.to(device).eval()
    whole = encode_with(encoder, device, config.evaluation.precision)
    random = encode_with(build_encoder(config), device, config.evaluation.precision)
    patch = config.model.patch_size
    named: dict[str, Encode] = {
        f"block {number + 1}": encode_layers(encoder, [number], device, config.evaluation.precision)
        for number in range(len(encoder.blocks))
    }
    places, share = places_in(train, val), config.evaluation.cell_share
    rows = depth_table(named, train, val, places, patch, share, pictures=0).scores
    sweep = {name: rows[name].figures["r2_within"] for name in named}
    floor = rows[f"block {len(encoder.blocks)}"].figures["r2_position"]
    last, (best, highest) = sweep[f"block {len(encoder.blocks)}"], max(sweep.items(), key=lambda item: item[1])
    gates = [Gate("floor", "R² over the mean map of the last block", floor, 0.0)]

    inputs: dict[str, Encode | OfBatch] = {
        "target encoder, whole image": whole,
        RAW: raw_patches(patch, device),
        RANDOM: random,
    }
    # The same patches count for all: those that the masks of an image hide.
    predicted = predicted_tokens(config, saved, device)
    if predicted is not None:
        inputs["predicted tokens"] = predicted
    swapped = depth_table(
        inputs,
        lambda: hidden_patches(config, train(), device),
        lambda: hidden_patches(config, val(), device),
        places,
        patch,
        share,
        pictures=0,
    ).scores
    swap = {name: swapped[name].figures["r2_within"] for name in inputs}
    base = max(swap[RAW], swap[RANDOM])
    gates += [Gate("swap", name, figure) for name, figure in swap.items() if name != "target encoder, whole image"]
    gates.append(Gate("swap", "target encoder, whole image", swap["target encoder, whole image"], base + MARGIN))
    gates += [Gate("layer", name, figure) for name, figure in sweep.items() if name != f"block {len(encoder.blocks)}"]
    gates.append(Gate("layer", f"block {len(encoder.blocks)} (last)", last, highest - MARGIN))
    words = [
        f"depth is read best after {best} of {len(encoder.blocks)} (R² within images {highest:.3f}; last {last:.3f})"
    ]
    if predicted is not None:
        words.append(
            f"at hidden patches the target encoder's tokens tell {swap['target encoder, whole image']:.3f}, predicted "
            f"tokens {swap['predicted tokens']:.3f}, raw patches {swap[RAW]:.3f}, a random encoder "
            f"{swap[RANDOM]:.3f} (R² within images)"
        )
    return gates, words


def hidden_patches(config: RunConfig, batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches with the masks of training's first epoch, whose depth is known at masked patches alone."""
    cells = config.grid[0] * config.grid[1]
    for batch in batches:
        masks = draw(config, batch, 0, torch.device("cpu"))
        hidden = torch.zeros(len(batch.images), cells, dtype=torch.bool)
        there = torch.ones_like(masks.targets, dtype=torch.bool) if masks.valid is None else masks.valid
        for row, (places, known) in enumerate(zip(masks.targets.flatten(1), there.flatten(1), strict=True)):
            hidden[row, places[known]] = True
        hidden.scatter_(1, masks.context, False)  # the `reference` sampler lets them overlap
        wide = hidden.view(-1, 1, *config.grid).repeat_interleave(config.model.patch_size, 2)
        wide = wide.repeat_interleave(config.model.patch_size, 3)
        assert batch.depth is not None
        depth = torch.where(wide.to(batch.depth.device), batch.depth, 0.0)
        yield replace(batch, depth=depth, masks=masks.to(device))


def predicted_tokens(config: RunConfig, saved: Checkpoint, device: torch.device) -> OfBatch | None:
    """The predictor's tokens under a batch's masks, zero at patches that are not hidden.

    None where the checkpoint has no predictor, or one of another grid.
    """
    if not saved.part("predictor") or config.grid != saved.config.grid:
        return None
    plain = replace(
        config,
        guidance=NoGuidance(),
        loss=replace(config.loss, latent=1.0),
        train=replace(config.train, objective="jepa"),
    )
    built = build_method(plain, None, 0)
    take_over(built, plain, saved)
    assert isinstance(built, JEPA)
    method, cells = built.to(device).eval(), config.grid[0] * config.grid[1]

    def read(batch: Batch) -> Float[Tensor, "b n d"]:
        assert batch.masks is not None
        _, predicted, masks = method.predict(method.context_encoder.normalise(batch.images.to(device)), batch.masks)
        tokens = predicted.targets[..., -method.context_encoder.width :].flatten(1, 2)
        known = None if masks.valid is None else masks.valid.flatten(1)
        return reassemble(tokens, masks.targets.flatten(1), cells, known)[0]

    return OfBatch(read)


def position_gate(config: RunConfig, encoder: VisionTransformer, device: torch.device) -> Gate:
    """R² of a ridge from tokens to the row and column of their patch, on validation images."""
    encode = encode_with(encoder, device, config.evaluation.precision)
    sides = (torch.arange(side, dtype=torch.float64) for side in config.grid)
    place = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).view(-1, 2)
    place = (place - place.mean(0)) / place.std(0).clamp(min=1e-9)
    ridge = Ridge()
    for fold, split in enumerate(get_args(Split)):
        for batch in few(config, split, POSITION_IMAGES)():
            # Each patch is a sample of its own: what is told here is its place.
            tokens = tokens_of(encode, batch).cpu().flatten(0, 1)[:, None]
            targets = place.repeat(len(batch.images), 1)[:, None]
            ridge.add(tokens, targets, torch.full((len(tokens),), fold))
    fitted, judged = ridge.folds[0], ridge.folds[1]
    (found,) = fitted.solve([POSITION_STRENGTH], shared=True)
    error = judged.error(found) / float(judged.y_square.sum())
    return Gate("position", "R² of row and column", 1 - error, POSITION)


def overfit_gates(
    config: RunConfig, saved: Checkpoint, batch: Batch, device: torch.device
) -> tuple[list[Gate], dict[str, np.ndarray]]:
    """Every head on both scopes, end to end and with all but the head frozen; and the maps of the end-to-end ones."""
    gates: list[Gate] = []
    maps: dict[str, np.ndarray] = {}

    def gate(head: str, scope: str, read: str, name: str, *, frozen: bool = False) -> Float[np.ndarray, "images h w"]:
        of, started = f"{name}, {'frozen' if frozen else 'end to end'}", time.monotonic()
        text = f"{TITLES['overfit']}: {of}"
        reached, shown = overfit(with_pixel_head(config, head, scope, read), saved, batch, device, text, frozen=frozen)
        gates.append(Gate("overfit", of, reached, None if frozen else WANTED))
        # There are many and each takes a while: each is told as it ends.
        print(f"{text}: {reached:.3f} ({time.monotonic() - started:.0f} s)", flush=True)
        return shown

    for head in PIXEL_HEADS.names:
        for scope in ("target", "full"):
            maps[f"{head}, {scope}"] = gate(head, scope, "predicted", f"{head}, {scope}")
            gate(head, scope, "predicted", f"{head}, {scope}", frozen=True)
        if not all(each.passed for each in gates[-4::2]):
            gate(head, "full", "dense", f"{head}, tokens of the whole image")
    assert batch.depth is not None
    known = valid(batch.depth)
    pictures = {
        "images": as_bytes(batch.images),
        "truth": torch.where(known, disparity(batch.depth), torch.nan)[:, 0].cpu().numpy(),
        "names": np.array(list(maps)),
        "maps": np.stack(list(maps.values())),
    }
    return gates, pictures


def with_pixel_head(config: RunConfig, head: str, scope: str, read: str) -> RunConfig:
    """The run with a pixel head of its own; what a run may do without, or hide from metres, is put right.

    dpt, the costliest by far, is half as wide: its four levels of convolutions learn the images by heart all the same.
    """
    own = config.guidance if isinstance(config.guidance, PixelGuidance) else PixelGuidance()
    guidance = replace(
        own,
        head=head,
        head_width=HEAD_WIDTH // 2 if PIXEL_HEADS.load(head).levels > 1 else HEAD_WIDTH,
        scope=scope,  # type: ignore[arg-type]
        read=read,  # type: ignore[arg-type]
        layers=(1.0,),
        weight=1.0,
        schedule="constant",
        detached=False,
        loss="l1" if own.loss == "ssi" else own.loss,
    )
    masks = replace(config.masks, kind="mae" if scope == "full" else "multiblock")
    return replace(config, guidance=guidance, masks=masks, train=replace(config.train, objective="jepa"))


def overfit(
    config: RunConfig,
    saved: Checkpoint,
    batch: Batch,
    device: torch.device,
    name: str,
    *,
    frozen: bool = False,
) -> tuple[float, Float[np.ndarray, "images h w"]]:
    """Train from the checkpoint on one batch until it is repeated; R² within images, and the disparities [1/m]."""
    teacher = build_teacher(config, has_depth=True)
    assert teacher is not None
    method = build_method(config, teacher, 0)
    # Its own copy: what is trained here is no more what was saved.
    take_over(method, config, replace(saved, model={key: value.clone() for key, value in saved.model.items()}))
    assert isinstance(method, JEPA)
    method.to(device)
    if frozen:
        for part in (method.context_encoder, method.predictor):
            part.requires_grad_(False)
    target = build_target(config, method, teacher)
    target.fit([batch])
    truth, whitening = target(batch), target.whitening
    assert whitening is not None
    images = method.context_encoder.normalise(batch.images)
    steps = config.evaluation.gate_steps
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    judge = Judge(config, batch, device)
    reached, maps = -math.inf, np.zeros(0)
    for step in track(range(steps), name, steps):
        rate = optim.learning_rate(step, start=LR / 20, peak=LR, final=LR / 50, warmup=steps // 20, steps=steps)
        with runtime.precision(config.train.precision, device):
            losses = method(images, draw(config, batch, step, device), truth)
        update(optimizer, [losses.total], rate, clip=1.0)
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
            method.eval()
            reached, maps = judge(method, whitening)
            method.train()
            if reached >= ENOUGH:
                break
    return reached, maps


def draw(config: RunConfig, batch: Batch, epoch: int, device: torch.device) -> Masks:
    """Masks of a batch, other ones each epoch."""
    index = batch.index.cpu().numpy()
    drawn = sample_masks(config.masks, config.grid, seed=config.seed, epoch=epoch, indices=index, batch_index=0)
    return drawn.to(device)


class Judge:
    """R² within images of what a method decodes of one batch, under masks that it was not trained with."""

    def __init__(self, config: RunConfig, batch: Batch, device: torch.device) -> None:
        assert batch.depth is not None
        self._config, self._batch, self._where = config, batch, device
        cells, known = cells_of(batch, config.data.size)
        means = CellMeans(config.data.size)
        means.add(cells, known)
        self._truth, self._known = cells.flatten(1).cpu(), known.flatten(1).cpu()
        self._mean = means.mean_map().values.flatten()

    def __call__(self, method: JEPA, whitening: Whitening) -> tuple[float, Float[np.ndarray, "images h w"]]:
        guesses, masks = [], []
        shown: Tensor | None = None
        for number in range(DRAWS):
            drawn = draw(self._config, self._batch, 10**6 + number, self._where)
            metres, judged = self._decode(method, whitening, drawn)
            guesses.append(metres.log().flatten(1).cpu())
            masks.append(self._known & judged.flatten(1).cpu())
            if shown is None:
                shown = torch.where(judged, disparity(metres), torch.nan)[:, 0].cpu()
        assert shown is not None
        truth = self._truth.repeat(DRAWS, 1)
        return r2_within(torch.cat(guesses), truth, torch.cat(masks), self._mean), shown.numpy()

    def _decode(self, method: JEPA, whitening: Whitening, masks: Masks) -> tuple[Tensor, Tensor]:
        if "predicted" in pixel_guide(method).reads:
            return predicted_metres(method, whitening, replace(self._batch, masks=masks))
        metres = dense_metres(method, whitening, self._batch)
        return metres, torch.ones_like(metres, dtype=torch.bool)
