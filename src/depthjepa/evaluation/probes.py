"""The probes as commands run them: a checkpoint and data to a table with its baselines.

Every table says what it was computed on and sets the figures of the same architecture at its initial weights (the
random encoder) and of a guess that knows nothing (the mean map, the most frequent class) beside the trained ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa import runtime
from depthjepa.checkpoint import Checkpoint
from depthjepa.config import RunConfig, build_config, to_mapping
from depthjepa.data.loading import open_source, source_name, view_batches
from depthjepa.data.samples import Batch, Source
from depthjepa.evaluation.classification import chance, knn, linear
from depthjepa.evaluation.depth_probe import DepthTable, depth_table
from depthjepa.evaluation.diagnostics import diagnose, verdict
from depthjepa.evaluation.features import Encode, Pooled, pooled_features
from depthjepa.evaluation.readout import DepthReadout
from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import RunFolder, to_json, write_whole
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer

RANDOM = "random encoder"
ACCURACY = [
    {"key": "train_accuracy", "label": "training accuracy", "unit": "%", "better": "higher"},
    {"key": "val_accuracy", "label": "validation accuracy", "unit": "%", "better": "higher"},
]
DEPTH_COLUMNS = [
    {"key": "r2_within", "label": "R² within images", "unit": "", "better": "higher"},
    {"key": "r2_position", "label": "R² over the mean map", "unit": "", "better": "higher"},
    {"key": "absrel", "label": "AbsRel", "unit": "", "better": "lower"},
    {"key": "rmse", "label": "RMSE", "unit": "m", "better": "lower"},
    {"key": "delta1", "label": "δ < 1.25", "unit": "", "better": "higher"},
    {"key": "aligned_absrel", "label": "AbsRel, aligned", "unit": "", "better": "lower"},
    {"key": "aligned_delta1", "label": "δ < 1.25, aligned", "unit": "", "better": "higher"},
]


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe's table in the form that run folders keep, with arrays for pictures and a readout to predict with."""

    table: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    readout: DepthReadout | None = None

    def value(self, row: str, key: str) -> float:
        """Return one figure."""
        return float(next(entry[key] for entry in self.table["rows"] if entry["name"] == row))


def probe(task: str, config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Run the probe `task` (knn, linear or depth) on a trained encoder; `config` says on which data.

    The baselines are computed in the same pass over the same images.
    """
    tasks = {"knn": knn_probe, "linear": linear_probe, "depth": depth_probe}
    if task not in tasks:
        raise BadInput(f"there is no probe {task!r}{nearest(task, tasks)}: choose from {', '.join(tasks)}")
    return tasks[task](config, encoder, where)


def probe_config(saved: Checkpoint, data: str | None, overrides: Iterable[str] = ()) -> RunConfig:
    """The checkpoint's configuration with other data; subsets of the training data are not carried over."""
    content = to_mapping(saved.config)
    if data is not None and data != content["data"]["root"]:
        content["data"] |= {"root": data, "kind": None, "classes": None, "images_per_class": None}
    config = build_config(content, list(overrides))
    own = replace(config.train, device=saved.config.train.device, threads=saved.config.train.threads)
    if own != saved.config.train:
        raise BadInput("train.* belongs to the checkpoint; a probe takes train.device and train.threads alone")
    for part in ("model", "masks", "guidance", "predictor", "optim", "seed"):
        if getattr(config, part) != getattr(saved.config, part):
            raise BadInput(f"{part}.* belongs to the checkpoint; a probe takes data.*, evaluation.* and train.device")
    _ = config.grid  # refuses an image size that patches do not divide
    return config


def encode_with(encoder: VisionTransformer, where: torch.device, precision: str = "fp32") -> Encode:
    """Turn an encoder into a function of RGB images in [0, 1]; tokens are float32 whatever it computes in."""
    encoder = encoder.to(where).eval()

    def encode(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        with runtime.precision(precision, where):
            tokens: Tensor = encoder(encoder.normalise(images.to(where)))
        return tokens.float()

    return encode


def encoders(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> dict[str, Encode]:
    """The random encoder (the run's own initial weights) and the trained one."""
    named = {RANDOM: build_encoder(config), config.name: encoder}
    return {name: encode_with(each, where, config.evaluation.precision) for name, each in named.items()}


# classification -------------------------------------------------------------------------------------------


def knn_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Nearest neighbours on mean-pooled tokens."""
    k = config.evaluation.neighbours
    train, val, features = pooled_pairs(config, encoder, where)
    rows: list[dict[str, Any]] = [{"name": "chance", "val_accuracy": 100 * chance(*features[RANDOM])}]
    rows += [{"name": name, "val_accuracy": 100 * knn(*pair, k=k)} for name, pair in features.items()]
    protocol = (
        f"{k} nearest neighbours by cosine on mean-pooled tokens of the frozen {config.evaluation.which} encoder; "
        f"{count(train, config.evaluation.train_images)} training and {count(val, config.evaluation.val_images)} "
        f"validation images at {size_text(config)}"
    )
    return Probe(table("knn", train, protocol, ACCURACY[1:], rows))


def linear_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Logistic regression on standardised mean-pooled tokens."""
    train, val, features = pooled_pairs(config, encoder, where)
    rows: list[dict[str, Any]] = [{"name": "chance", "val_accuracy": 100 * chance(*features[RANDOM])}]
    for name, pair in features.items():
        result = linear(*pair, seed=config.seed)
        accuracies = {
            "train_accuracy": 100 * result.train_accuracy,
            "val_accuracy": 100 * result.val_accuracy,
        }
        rows.append({"name": name, **accuracies, "weight_decay": result.weight_decay})
    protocol = (
        f"linear classifier on standardised mean-pooled tokens of the frozen {config.evaluation.which} encoder, its "
        f"strength chosen on a fifth of the training data; {count(train, config.evaluation.train_images)} training "
        f"and {count(val, config.evaluation.val_images)} validation images at {size_text(config)}"
    )
    return Probe(table("linear", train, protocol, ACCURACY, rows))


def pooled_pairs(
    config: RunConfig, encoder: VisionTransformer, where: torch.device
) -> tuple[Source, Source, dict[str, tuple[Pooled, Pooled]]]:
    """Pooled training and validation features of the random and of the trained encoder."""
    train, val = open_source(config.data, "train"), open_source(config.data, "val")
    if not train.classes:
        raise BadInput(
            f"this probe needs labels, and {config.data.root} has none: give a class folder (train/CLASS/*, "
            f"val/CLASS/*) or `scenes`"
        )
    features = {
        name: pooled_pair(config, train, val, encode) for name, encode in encoders(config, encoder, where).items()
    }
    return train, val, features


def pooled_pair(config: RunConfig, train: Source, val: Source, encode: Encode) -> tuple[Pooled, Pooled]:
    """Pooled features of both sources."""
    limits = config.evaluation
    return (
        pooled_features(encode, views(config, train, limits.train_images)),
        pooled_features(encode, views(config, val, limits.val_images)),
    )


# depth ----------------------------------------------------------------------------------------------------


def depth_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Linear readout of disparity; see `evaluation.depth_probe`."""
    train, val = open_source(config.data, "train"), open_source(config.data, "val")
    found = depth_tables(config, train, val, encoders(config, encoder, where))
    protocol = (
        f"ridge readout of 2 x 2 disparities a patch from the frozen {config.evaluation.which} encoder's last layer, "
        f"its strength chosen on a fifth of the training data, averaged over cells of "
        f"{config.model.patch_size / 2:g} px; {count(train, config.evaluation.train_images)} training and "
        f"{count(val, config.evaluation.val_images)} validation images, whole views at {size_text(config)}"
    )
    shown = found.pictures
    arrays = {
        "images": shown.images,
        "truth": shown.truth,
        "mean_map": found.mean_map.values.numpy(),
        "random": shown.predictions[RANDOM],
        "prediction": shown.predictions[config.name],
    }
    result = table("depth", train, protocol, DEPTH_COLUMNS, found.rows)
    return Probe(result, arrays, found.readouts[config.name])


def depth_tables(config: RunConfig, train: Source, val: Source, named: Mapping[str, Encode]) -> DepthTable:
    """Depth table of encoders on two sources, in whole views."""
    for source in (train, val):
        if not source.has_depth:
            raise BadInput(f"the depth probe needs depth, and {source.name} has none: give an RGB-D folder or `scenes`")
    return depth_table(
        named,
        functools.partial(views, config, train, config.evaluation.train_images),
        functools.partial(views, config, val, config.evaluation.val_images),
        config.model.patch_size,
        config.evaluation.pictures,
    )


# diagnostics ----------------------------------------------------------------------------------------------

DIAGNOSTIC_COLUMNS = [
    {"key": "rank_me", "label": "RankMe", "unit": "dimensions", "better": "higher"},
    {"key": "effective_rank", "label": "effective rank, centred", "unit": "dimensions", "better": "higher"},
    {"key": "deviation_mean", "label": "deviation a dimension", "unit": "", "better": "higher"},
    {"key": "position_share", "label": "variance that position explains", "unit": "", "better": "lower"},
    {"key": "image_share", "label": "variance that the image mean explains", "unit": "", "better": "higher"},
]


def diagnostics_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Rank, spread and position share of the embeddings that training predicts; no labels, no depth needed."""
    source = open_source(config.data, "val")
    found = {
        name: diagnose(as_targets(encode), views(config, source, config.evaluation.val_images))
        for name, encode in encoders(config, encoder, where).items()
    }
    protocol = (
        f"mean-pooled tokens (rank, deviation) and single tokens (shares of variance) of the frozen "
        f"{config.evaluation.which} encoder's last layer, layer-normalised as prediction targets are, on "
        f"{count(source, config.evaluation.val_images)} images at {size_text(config)}; width {encoder.width}"
    )
    rows = [{"name": name, **figures} for name, figures in found.items()]
    result = table("diagnose", source, protocol, DIAGNOSTIC_COLUMNS, rows)
    return Probe(result | {"verdict": verdict(found[config.name], found[RANDOM])})


def as_targets(encode: Encode) -> Encode:
    """Layer-normalise each token, as training does with what it predicts."""
    return lambda images: F.layer_norm(tokens := encode(images), tokens.shape[-1:])


# during training ------------------------------------------------------------------------------------------


def probe_during_training(
    encoder: VisionTransformer, config: RunConfig, where: torch.device
) -> tuple[dict[str, float], float]:
    """Probe the evaluated encoder alone; the figures for `metrics.jsonl` and the one that ranks checkpoints.

    Depth (R² within images) ranks where there is depth, else nearest neighbours; at most 1,024 training and 512
    validation images are read.
    """
    limit = config.evaluation
    limits = {"train_images": limit.train_images or 1024, "val_images": limit.val_images or 512}
    config = build_config(to_mapping(config), [f"evaluation.{key}={value}" for key, value in limits.items()])
    train, val = open_source(config.data, "train"), open_source(config.data, "val")
    encode = encode_with(encoder, where, config.evaluation.precision)
    figures: dict[str, float] = {}
    if train.classes:
        pair = pooled_pair(config, train, val, encode)
        figures["probe_knn"] = knn(*pair, k=config.evaluation.neighbours)
    if train.has_depth and val.has_depth:
        found = depth_tables(config, train, val, {config.name: encode})
        figures["probe_r2_within"] = found.scores[config.name].figures["r2_within"]
    encoder.train()
    if not figures:
        raise BadInput(f"train.probe_every needs labels or depth, and {config.data.root} has neither")
    return figures, figures.get("probe_r2_within", figures.get("probe_knn", 0.0))


# shared by the probes -------------------------------------------------------------------------------------


def views(config: RunConfig, source: Source, limit: int | None) -> Iterable[Batch]:
    """Fixed views of a source: whole images where depth is known, else the central part."""
    return view_batches(
        source,
        config.data.size,
        view="whole" if source.has_depth else "centre",
        batch_size=config.evaluation.batch_size,
        limit=limit,
        workers=config.data.workers,
    )


def table(
    task: str, source: Source, protocol: str, columns: list[dict[str, str]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Put a table into the form that run folders keep and the report reads."""
    return {"task": task, "data": source.name, "protocol": protocol, "columns": columns, "rows": rows}


def count(source: Source, limit: int | None) -> int:
    """Number of images that a limit leaves."""
    return len(source) if limit is None else min(limit, len(source))


def size_text(config: RunConfig) -> str:
    """Image size for people, and the precision where it is not float32."""
    height, width = config.data.size
    size = f"{height} px" if height == width else f"{height} x {width} px"
    return size if config.evaluation.precision == "fp32" else f"{size} in {config.evaluation.precision}"


def write_probe(result: Probe, saved: Checkpoint, which: str, out: Path | None = None) -> None:
    """Write table, arrays and readout below the run folder of a checkpoint, and the table alone to `out`.

    On other data than the run's own, the files carry the name of the data; the readout is always the newest, and says
    to which weights it belongs. A checkpoint outside a run folder has no place for them.
    """
    folder = saved.run
    if out is not None:
        write_whole(out, to_json(result.table))
    if folder is not None:
        data = result.table["data"]
        own = source_name(build_config(RunFolder(folder).config()).data.root)
        elsewhere = "" if data == own else "-" + re.sub(r"\W+", "_", Path(data).name)
        name = f"probes/{result.table['task']}{elsewhere}"
        write_whole(folder / f"{name}.json", to_json(result.table))
        if result.arrays:
            RunFolder(folder).save_arrays(name, result.arrays)
        if result.readout is not None:
            origin = {"step": str(saved.step), "which": which, "data": data}
            result.readout.save(folder / "probes" / "depth.safetensors", origin)
