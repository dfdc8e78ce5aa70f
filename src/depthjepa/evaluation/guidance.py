"""Did the depth get into the features? What the head of a guided run says of held-out images, and what features know.

The head's maps are judged by `evaluation.shortcuts` (D0 to D4). Whether the encoder or the head alone has learned it
(D5) is told by a fresh ridge from the frozen tokens of each block to the teacher's latents of whole views, beside the
random encoder and, where one is given, an unguided twin; D6 is linear CKA, less what another image's latents give. How
hard the guidance pulls is told by the gradient of its loss at the context encoder, against that of all other losses.

D5 and D6 need no head: they are told of any run where a teacher can be asked, which is ground truth where a run had no
teacher, supervised pixels or was taught a control.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reading import refuse_lost
from depthjepa.config.run_config import RunConfig
from depthjepa.data.groups import FOLDS, divide
from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.samples import Batch
from depthjepa.evaluation.alignment import cka_selectivity
from depthjepa.evaluation.features import tokens_of
from depthjepa.evaluation.gathering import Views
from depthjepa.evaluation.pictures import picture_masks, predicted_latents
from depthjepa.evaluation.ridge import Ridge
from depthjepa.evaluation.shortcuts import explained, measure
from depthjepa.faults import BadInput
from depthjepa.formats.weights import load_strictly
from depthjepa.grid import to_map, to_tokens, unfold_cells
from depthjepa.guidance.build import asked_directly, asks_network
from depthjepa.guidance.target import Teacher, Whitening, on_cells, whitening_of
from depthjepa.guidance.teachers.controls import Control, SideBySide
from depthjepa.guidance.teachers.ground_truth import DepthTeacher
from depthjepa.losses import Latents
from depthjepa.method import build_method, build_teacher
from depthjepa.model.heads.head import CELLS
from depthjepa.model.jepa import JEPA
from depthjepa.model.vit import VisionTransformer

SAID = 0.1  # R² within images from which a head says something
OWN = 0.02  # R² within images by which an encoder is to beat the one beside it


def head_did_it_alone(
    figures: Mapping[str, float], own: Sequence[Mapping[str, float]], beside: Sequence[Mapping[str, float]], name: str
) -> list[str]:
    """Say if the head tells depth that the frozen tokens do not: then the head has learned it, not the encoder."""
    best, other = (max(each["r2_within"] for each in layers) for layers in (own, beside))
    if figures["r2_within"] > SAID and best - other < OWN:
        return [
            f"the head did it alone: its maps have R² {figures['r2_within']:.2f} within images, but a fresh readout "
            f"tells {best:.3f} of the frozen tokens, and {other:.3f} of {name}'s"
        ]
    return []


def asked_teacher(config: RunConfig, *, has_depth: bool) -> Teacher:
    """The run's teacher network, or ground truth; never a control, and never a cache, which may lack these images."""
    if asks_network(config.guidance):
        teacher = build_teacher(replace(config, guidance=asked_directly(config.guidance)), has_depth=has_depth)
        assert teacher is not None
        return teacher
    if not has_depth:
        raise BadInput(f"guidance is judged by depth, and {config.data.root} has none: give {with_depth()}")
    return DepthTeacher()


def refuse_other_grid(saved: Checkpoint, against: Checkpoint) -> None:
    """Twins have one patch grid: their tokens lie on the same cells."""
    if against.config.model.patch_size != saved.config.model.patch_size:
        raise BadInput(
            f"--against {against.path} has patches of {against.config.model.patch_size} px and {saved.path} of "
            f"{saved.config.model.patch_size}: their tokens do not lie on the same cells"
        )


def ask_all(teacher: Teacher, config: RunConfig, views: Views, device: torch.device) -> Latents:
    """What the teacher says of all views, at twice the patch grid, on the CPU."""
    cells = CELLS * config.grid[0], CELLS * config.grid[1]
    found = [on_cells(teacher, batch.to(device), cells) for batch in views()]
    valid = torch.cat([each.valid.expand_as(each.values).cpu() for each in found])
    if not valid.any():
        raise BadInput(f"the teacher has nothing to say of {views.source.name}")
    return Latents(torch.cat([each.values.cpu() for each in found]), valid)


def load_guided(saved: Checkpoint, device: torch.device) -> tuple[JEPA, Teacher]:
    """The networks of a guided run in eval mode and its teacher; raises `BadInput` for any other."""
    refuse_lost(saved)
    config = replace(saved.config, guidance=asked_directly(saved.config.guidance, control=True))
    teacher = build_teacher(config, has_depth=True)
    method = build_method(config, teacher, len(saved.classes))
    if teacher is None or not isinstance(method, JEPA):
        raise BadInput(f"{saved.path} is not of a guided I-JEPA run")
    load_strictly(method, saved.model, saved.path)
    return method.to(device).eval(), teacher.to(device)


def map_figures(
    config: RunConfig, saved: Checkpoint, train: Views, val: Views, device: torch.device
) -> dict[str, float]:
    """Figures of `shortcuts.measure` of the head's maps of held-out images, and the pull of the guidance loss."""
    if config.grid != saved.config.grid:
        raise BadInput(
            f"the predictor of {saved.path} knows {saved.config.grid} patches alone: leave data.image_size as it is"
        )
    method, asked = load_guided(saved, device)
    assert saved.whitening is not None and method.guide is not None
    teacher = _own_depth(asked)
    whitening = Whitening(saved.whitening.mean.to(device), saved.whitening.deviation.to(device))
    _, mean = whitening_of([on_cells(teacher, batch.to(device), config.target_cells) for batch in train()])
    everywhere = torch.ones_like(mean, dtype=torch.bool)[None]
    centre = whitening.apply(Latents(mean.float()[None], everywhere), math.inf).values[0]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    pull: dict[str, float] = {}
    for batch in val():
        moved = batch.to(device)
        truth = whitening.apply(on_cells(teacher, moved, config.target_cells), math.inf)
        masks = picture_masks(config, batch).to(device)
        with torch.no_grad():
            guess, judged = predicted_latents(method, moved, masks)
        valid = truth.valid & judged
        found.append((truth.values.cpu(), guess.float().cpu(), valid.expand_as(truth.values).cpu()))
        if not pull:  # of the first images, by the loss that the run was trained by
            own = truth if teacher is asked else whitening.apply(on_cells(asked, moved, config.target_cells), math.inf)
            pull = pull_on_encoder(method, replace(moved, masks=masks), own)
    # What stands beside the teacher's own latents is left out.
    maps = [torch.cat(parts).chunk(method.guide.targets, 1)[0] for parts in zip(*found, strict=True)]
    return measure(maps[0], maps[1], maps[2], centre.chunk(method.guide.targets, 0)[0].cpu()) | pull


def _own_depth(asked: Teacher) -> Teacher:
    """What tells an image's own depth in the place of another's or of the mean map: a head is held to that."""
    if isinstance(asked, SideBySide):
        first = _own_depth(asked.first)
        return asked if first is asked.first else SideBySide(first, asked.second)
    return asked.teacher if isinstance(asked, Control) and asked.of_depth else asked


def pull_on_encoder(method: JEPA, batch: Batch, truth: Latents) -> dict[str, float]:
    """Gradient of the guidance loss at the context encoder against that of the other losses: ratio and cosine."""
    assert batch.masks is not None
    losses = method(method.context_encoder.normalise(batch.images), batch.masks, truth)
    assert method.guide is not None
    # The losses are those of a run's end, where guidance that was released has no weight: its whole one is told.
    depth = method.guide.weight * losses.parts["loss_depth"]
    others = losses.total - method.guide.weight_at(1.0) * losses.parts["loss_depth"]
    parameters = [each for each in method.context_encoder.parameters() if each.requires_grad]

    def gradient(loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            return torch.zeros(1)
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)]
        )

    guided, rest = gradient(depth), gradient(others)
    if not guided.any() or not rest.any():
        return {"pull": 0.0 if not guided.any() else math.inf, "pull_cosine": math.nan}
    return {
        "pull": float(guided.norm() / rest.norm()),
        "pull_cosine": float(F.cosine_similarity(guided, rest, dim=0)),
    }


def layer_figures(
    encoder: VisionTransformer,
    config: RunConfig,
    train: Views,
    val: Views,
    known: Latents,
    judged: Latents,
    device: torch.device,
) -> list[dict[str, float]]:
    """r2_within of a fresh ridge, and the CKA figures, after each block of an encoder."""
    encoder = encoder.to(device).eval()
    blocks, grid = list(range(len(encoder.blocks))), config.grid
    whitening, _ = whitening_of([known])
    ridges = [Ridge() for _ in blocks]
    folds = torch.from_numpy(divide(train.source, train.numbers).fold)
    for batch, first in _numbered(train):
        cells, whole = _on_patches(whitening, known, first, len(batch.images))
        fold = folds[batch.index.cpu()][:, None].expand_as(whole)[whole]
        for ridge, tokens in zip(ridges, _features(encoder, batch, blocks, device), strict=True):
            ridge.add(tokens[whole][:, None], cells[whole][:, None], fold)
    if len(ridges[0].folds) < 2:
        raise BadInput(f"a readout of guidance needs at least {FOLDS} training images that the teacher knows")
    readouts = [ridge.solve(ridge.choose()) for ridge in ridges]
    kept: list[list[Tensor]] = [[] for _ in blocks]
    read: list[list[Tensor]] = [[] for _ in blocks]
    for batch, _ in _numbered(val):
        for number, tokens in enumerate(_features(encoder, batch, blocks, device)):
            read[number].append(unfold_cells(readouts[number].predict(tokens), grid, CELLS))
            kept[number].append(tokens)
    white = whitening.apply(judged, math.inf)
    truth = white.values.double()
    cells, whole = _on_patches(whitening, judged, 0, len(truth))
    counted = to_map(whole[..., None].float(), grid).repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3).bool()
    nothing = torch.zeros_like(truth[0])
    return [
        {"r2_within": explained(truth, torch.cat(read[number]), counted, nothing)["r2_within"]}
        | cka_selectivity(torch.cat(kept[number]), cells, whole)
        for number in blocks
    ]


def _on_patches(
    whitening: Whitening, latents: Latents, first: int, count: int
) -> tuple[Float[Tensor, "b n c"], Bool[Tensor, "b n"]]:
    """Whitened cells of each patch of some images, and the patches all of whose cells are known."""
    part = Latents(latents.values[first : first + count], latents.valid[first : first + count])
    white = whitening.apply(part, math.inf)
    cells = to_tokens(F.pixel_unshuffle(white.values, CELLS))
    return cells, to_tokens(F.pixel_unshuffle(white.valid.float(), CELLS)).bool().all(2)


def _numbered(views: Views) -> Iterator[tuple[Batch, int]]:
    """Batches, with the number of the first image of each."""
    first = 0
    for batch in views():
        yield batch, first
        first += len(batch.images)


def _features(encoder: VisionTransformer, batch: Batch, blocks: list[int], device: torch.device) -> list[Tensor]:
    def encode(images: Tensor) -> Tensor:
        return torch.cat(encoder.features(encoder.normalise(images.to(device)), blocks), -1)

    return list(tokens_of(encode, batch).cpu().chunk(len(blocks), -1))
