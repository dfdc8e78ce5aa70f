"""Probing while a run trains: the figures that `metrics.jsonl` gets, and the one that ranks checkpoints."""

from __future__ import annotations

from dataclasses import replace

import torch

from depthjepa.config.run_config import RunConfig
from depthjepa.distributed import Ranks
from depthjepa.evaluation.classification import knn
from depthjepa.evaluation.depth_probe import depth_table
from depthjepa.evaluation.diagnostics import rank_me
from depthjepa.evaluation.gathering import Views, encode_together, encode_with, one_pass, places_in
from depthjepa.faults import BadInput
from depthjepa.model.vit import VisionTransformer

TRAIN_IMAGES, VAL_IMAGES = 1024, 512  # at most, unless the configuration says otherwise


def probe_during_training(
    encoder: VisionTransformer, config: RunConfig, device: torch.device, ranks: Ranks
) -> tuple[dict[str, float], float]:
    """Probe the evaluated encoder alone; the figures for `metrics.jsonl` and the one that ranks checkpoints.

    All processes take part: they encode the images together, and each makes the figures of all tokens.

    Depth (R² within images) ranks where there is depth, else nearest neighbours (the middle one of
    `evaluation.neighbours`); RankMe stands beside them. At most 1,024 training and 512 validation images are read.
    """
    asked = config.evaluation
    limited = replace(asked, train_images=asked.train_images or TRAIN_IMAGES, val_images=asked.val_images or VAL_IMAGES)
    config = replace(config, evaluation=limited)
    train, val = Views(config, "train"), Views(config, "val")
    with_depth = train.source.has_depth and val.source.has_depth
    if not (train.source.classes or with_depth):
        raise BadInput(f"train.probe_every needs labels or depth, and {config.data.root} has neither")
    encode = encode_together(encode_with(encoder, device, asked.precision), ranks)
    seen = one_pass(encode, val)
    figures = {"probe_rank_me": rank_me(seen.diagnosis.features)}
    if train.source.classes:
        middle = asked.neighbours[len(asked.neighbours) // 2]
        figures["probe_knn"] = knn(one_pass(encode, train).pooled, seen.pooled, middle)
    if with_depth:
        places = places_in(train, val).together()  # a part may have too few of these images for figures of its own
        found = depth_table(
            {config.name: encode}, train, val, places, config.model.patch_size, asked.cell_share, pictures=0
        )
        figures["probe_r2_within"] = found.scores[config.name].figures["r2_within"]
    encoder.train()
    return figures, figures.get("probe_r2_within", figures.get("probe_knn", 0.0))
