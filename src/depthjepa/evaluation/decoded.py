"""What a run's own pixel head says of held-out images, pixel by pixel, beside the mean map.

This judges encoder, predictor and head together, as the paper looked at its maps; the depth probe judges the frozen
encoder alone. Masks are drawn as in training, the same for every model of a seed. Under scope `target` only pixels of
target patches are judged, those of the guesses as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reading import refuse_lost
from depthjepa.config.run_config import RunConfig
from depthjepa.data.samples import Batch
from depthjepa.evaluation.depth_cells import Predict, training_maps
from depthjepa.evaluation.depth_probe import DepthTable, Told, evaluate_depth
from depthjepa.evaluation.gathering import Views, places_in
from depthjepa.faults import BadInput
from depthjepa.formats.weights import load_strictly
from depthjepa.guidance.pixel import PixelGuide
from depthjepa.guidance.target import Whitening
from depthjepa.masks import sample_masks
from depthjepa.method import build_method, build_teacher
from depthjepa.model.jepa import JEPA


def load_pixel_guided(saved: Checkpoint, device: torch.device) -> JEPA:
    """The networks of a pixel-guided run, in eval mode; raises `BadInput` for any other."""
    kind = saved.config.guidance.kind
    if kind != "pixel" or saved.config.train.objective != "jepa" or saved.whitening is None:
        raise BadInput(
            f"{saved.path} has no pixel head to decode depth with (guidance.kind={kind}): probe its features with "
            f"`depthjepa probe RUN depth`"
        )
    refuse_lost(saved)
    method = build_method(saved.config, build_teacher(saved.config, has_depth=True), len(saved.classes))
    load_strictly(method, saved.model, saved.path)
    assert isinstance(method, JEPA)
    return method.to(device).eval()


@torch.no_grad()
def predicted_metres(
    method: JEPA, whitening: Whitening, batch: Batch
) -> tuple[Float[Tensor, "b 1 h w"], Bool[Tensor, "b 1 h w"]]:
    """Depth [m] by a head that reads predicted tokens, under the batch's masks; and the pixels that count."""
    guide = pixel_guide(method)
    assert batch.masks is not None
    images = method.context_encoder.normalise(batch.images)
    levels, predicted, masks = method.predict(images, batch.masks)
    maps, judged = guide.read(method.context_encoder, images, levels, predicted, masks)["predicted"]
    assert judged is not None
    return guide.metres(undone(whitening, maps)), judged


@torch.no_grad()
def dense_metres(method: JEPA, whitening: Whitening, batch: Batch) -> Float[Tensor, "b 1 h w"]:
    """Depth [m] by a head that reads the tokens of the whole image; of any size that patches divide."""
    guide = pixel_guide(method)
    maps = guide.read_dense(method.context_encoder, method.context_encoder.normalise(batch.images))
    return guide.metres(undone(whitening, maps))


def pixel_guide(method: JEPA) -> PixelGuide:
    """The guide of a pixel-guided run."""
    assert isinstance(method.guide, PixelGuide)
    return method.guide


def undone(whitening: Whitening, maps: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Take the whitening from maps of any size: the mean map is resized to theirs."""
    mean = whitening.mean.to(maps)
    if mean.shape[1:] != maps.shape[2:]:
        mean = F.interpolate(mean[None], maps.shape[2:], mode="bilinear", align_corners=False)[0]
    return maps * whitening.deviation.to(maps)[:, None, None] + mean


def decode_tables(
    config: RunConfig, saved: Checkpoint, train: Views, val: Views, device: torch.device
) -> list[DepthTable]:
    """Score the head of a pixel-guided run on validation images, beside the guesses that the training images give.

    A table for each of several data sets, and last that of all together. The figures are those of the whole image's
    tokens where the head reads them, else of predicted tokens, of which `predicted_r2_within` is the figure in either
    case.
    """
    method = load_pixel_guided(saved, device)
    guide, whitening = pixel_guide(method), saved.whitening
    assert whitening is not None
    if "predicted" in guide.reads and config.grid != saved.config.grid:
        raise BadInput(
            f"the predictor of {saved.path} knows {saved.config.grid} patches alone: leave data.image_size as it is"
        )
    places = places_in(train, val)
    maps = training_maps(train(), places, pixels_of, share=0.0)
    found: dict[str, list[DepthTable]] = {}
    for which in guide.reads:
        batches = judged_by_masks(val(), config, method, device) if which == "predicted" else moved(val(), device)
        head = {config.name: Told(reading(method, whitening, which))}
        found[which] = evaluate_depth(head, maps, places, batches, pictures=config.evaluation.pictures)
    tables = found.get("dense") or found["predicted"]
    for table, predicted in zip(tables, found.get("predicted", ()), strict="predicted" in found):
        for row, other in zip(table.rows, predicted.rows, strict=True):
            row["predicted_r2_within"] = other["r2_within"]
    return tables


def reading(method: JEPA, whitening: Whitening, which: str) -> Predict:
    """Log depth [log m] from predicted tokens, or from the whole image."""
    if which == "dense":
        return lambda batch: dense_metres(method, whitening, batch).log()
    return lambda batch: predicted_metres(method, whitening, batch)[0].log()


def moved(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device."""
    for batch in batches:
        yield batch.to(device)


def judged_by_masks(batches: Iterable[Batch], config: RunConfig, method: JEPA, device: torch.device) -> Iterator[Batch]:
    """Give batches masks as training draws them; take out depth that predictions are not judged on, for every row."""
    guide = pixel_guide(method)
    for batch in moved(batches, device):
        index = batch.index.cpu().numpy()
        drawn = sample_masks(config.masks, config.grid, seed=config.seed, epoch=0, indices=index, batch_index=0)
        masks = drawn.to(device)
        assert batch.depth is not None
        yield replace(batch, masks=masks, depth=torch.where(guide.judged(masks), batch.depth, 0.0))


def pixels_of(batch: Batch) -> tuple[int, int]:
    """Cells that are the pixels of a view."""
    return batch.images.shape[2], batch.images.shape[3]
