"""Arrays that the report draws: masks, patch features, guidance maps. Written by a run, read as files later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from depthjepa.config.run_config import RunConfig
from depthjepa.data.loading import has_validation, open_source
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.evaluation.decoded import undone
from depthjepa.evaluation.gathering import views
from depthjepa.evaluation.readout import patch_grid
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.pixel import PixelGuide
from depthjepa.guidance.target import Target, first_target, on_cells
from depthjepa.logbook import RunFolder
from depthjepa.masks import Masks, sample_masks
from depthjepa.method import build_encoder
from depthjepa.model.encoder import Encoder
from depthjepa.model.jepa import JEPA
from depthjepa.model.supervised import Supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 8  # images of a picture


@torch.no_grad()
def write_pictures(
    method: JEPA | Supervised,
    config: RunConfig,
    target: Target | None,
    folder: RunFolder,
    device: torch.device,
) -> None:
    """Write `figures/*.npz` of a trained method on validation images (training images where there are none)."""
    method.eval()
    batch = picture_batch(config).to(device)
    masks = None
    if config.train.objective == "jepa":
        masks = picture_masks(config, batch).to(device)
        folder.save_arrays("figures/masks", mask_arrays(batch, masks, config.grid))
    random = build_encoder(config).to(device)
    features = feature_arrays(method.encoder, batch) | {"random": token_maps(random, batch)}
    folder.save_arrays("figures/features", features)
    if target is not None and target.whitening is not None:
        truth = target(batch)
        predicted, judged = predicted_latents(method, batch, masks)
        if isinstance(method, JEPA) and method.guide is not None:  # what is beside the teacher is not drawn
            truth, predicted = first_target(truth, method.guide.targets), predicted.chunk(method.guide.targets, 1)[0]
        if isinstance(method, JEPA) and isinstance(method.guide, PixelGuide):  # in its own numbers
            predicted, truth = undone(target.whitening, predicted), on_cells(target.teacher, batch, target.cells)
        arrays = {
            "images": as_bytes(batch.images),
            "teacher": torch.where(truth.valid, truth.values, torch.nan).cpu().numpy(),
            "predicted": torch.where(judged, predicted.float(), torch.nan).cpu().numpy(),
        }
        folder.save_arrays("figures/guidance", arrays)
    method.train()


def drawn(folder: RunFolder) -> dict[str, Figure]:
    """What `write_pictures` left in a run folder, drawn; the report puts several runs side by side instead."""
    from depthjepa.drawing.figures import latent_rows, masks_figure  # they load Matplotlib
    from depthjepa.drawing.token_figures import feature_pca

    draw: dict[str, Callable[[dict[str, np.ndarray]], Figure]] = {
        "masks": lambda of: masks_figure(of["images"], of["context"], of["targets"]),
        "features": lambda of: feature_pca(of["images"], {"trained": of["tokens"], "random encoder": of["random"]}),
        "guidance": lambda of: latent_rows(of["images"], of["teacher"], {"predicted": of["predicted"]}),
    }
    found: dict[str, Figure] = {}
    for name in draw:
        if (file := folder.path / "figures" / f"{name}.npz").is_file():
            with np.load(file) as arrays:
                found[name] = draw[name]({key: arrays[key][:DRAWN] for key in arrays.files})
    return found


def picture_batch(config: RunConfig) -> Batch:
    """The images that a run's pictures show: an even spread over the data, the same for every run on them."""
    source = open_source(config.data, "val" if has_validation(config.data) else "train")
    guidance = config.guidance
    least = 2 if isinstance(guidance, FeatureGuidance) and guidance.control == "another" else 1  # one has no neighbour
    if len(source) < least:
        source = open_source(config.data, "train")
    limit = config.evaluation.pictures
    return next(iter(views(config, source, limit)))


def picture_masks(config: RunConfig, batch: Batch) -> Masks:
    """Masks as training draws them, for the images of the pictures."""
    return sample_masks(
        config.masks, config.grid, seed=config.seed, epoch=0, indices=batch.index.cpu().numpy(), batch_index=0
    )


def predicted_latents(method: JEPA | Supervised, batch: Batch, masks: Masks | None) -> tuple[Tensor, Tensor]:
    """What the head makes of held-out images, under masks as in training; and the cells where it is judged."""
    images = method.encoder.normalise(batch.images)
    if isinstance(method, JEPA):
        assert masks is not None and method.guide is not None
        levels, predicted, masks = method.predict(images, masks)
        read = method.guide.read(method.context_encoder, images, levels, predicted, masks)
        maps, judged = next(iter(read.values()))
        return maps, torch.ones_like(maps[:, :1], dtype=torch.bool) if judged is None else judged
    return method.depth_latents(method.context_encoder(images))


def mask_arrays(batch: Batch, masks: Masks, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Images with the patches of context and targets as maps of truth values."""
    cells = torch.arange(grid[0] * grid[1], device=masks.context.device)
    context = (masks.context[..., None] == cells).any(1).view(-1, *grid)
    targets = (masks.targets[..., None] == cells).any(2).view(*masks.targets.shape[:2], *grid)
    return {"images": as_bytes(batch.images), "context": context.cpu().numpy(), "targets": targets.cpu().numpy()}


def feature_arrays(encoder: Encoder, batch: Batch) -> dict[str, np.ndarray]:
    """Images, the tokens of an encoder, and depth [m] in half precision (of 10 m, 8 mm) where the images have it."""
    depth = {} if batch.depth is None else {"depth": batch.depth[:, 0].half().cpu().numpy()}
    return {"images": as_bytes(batch.images), "tokens": token_maps(encoder, batch), **depth}


def token_maps(encoder: Encoder, batch: Batch) -> np.ndarray:
    """Tokens of an encoder on its patch grid, [k, rows, cols, d] in half precision."""
    tokens: Tensor = encoder.eval()(encoder.normalise(batch.images))
    maps: np.ndarray = (
        tokens.reshape(len(tokens), *patch_grid(batch.images, encoder.patch_size), encoder.width).half().cpu().numpy()
    )
    return maps
