"""The probes as commands run them: a checkpoint and data to a table with its baselines.

Every table says what it was computed on and sets the figures of the same architecture at its initial weights (the
random encoder) and of a guess that knows nothing (the mean map, the most frequent class) beside the trained ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthjepa import runtime
from depthjepa.checkpoint import Checkpoint
from depthjepa.config import RunConfig, build_config, to_mapping
from depthjepa.data.loading import source_name
from depthjepa.evaluation.classification import chance, knn
from depthjepa.evaluation.classification_tables import ACCURACY, classification_tables
from depthjepa.evaluation.decoded import decode_table
from depthjepa.evaluation.depth_probe import DepthTable, depth_table
from depthjepa.evaluation.depth_readouts import Plan, describe, encode_layers, layers_of, readout_table
from depthjepa.evaluation.diagnostics import rank_me
from depthjepa.evaluation.features import Encode, pooled_features
from depthjepa.evaluation.gates import gates_table
from depthjepa.evaluation.gathering import (
    RANDOM,
    Views,
    encode_with,
    encoders,
    one_pass,
    table,
    views_text,
    whole_views_text,
)
from depthjepa.evaluation.guidance import guidance_tables
from depthjepa.evaluation.readout import DepthReadout
from depthjepa.evaluation.trained_probes import HIDDEN, SETTINGS, TOGETHER, mlp, sweep
from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import RunFolder, to_json, write_whole
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer

DEPTH_COLUMNS = [
    {"key": "r2_within", "label": "R² within images", "unit": "", "better": "higher"},
    {"key": "r2_position", "label": "R² over the mean map", "unit": "", "better": "higher"},
    {"key": "absrel", "label": "AbsRel", "unit": "", "better": "lower"},
    {"key": "rmse", "label": "RMSE", "unit": "m", "better": "lower"},
    {"key": "delta1", "label": "δ < 1.25", "unit": "", "better": "higher"},
    {"key": "aligned_absrel", "label": "AbsRel, aligned", "unit": "", "better": "lower"},
    {"key": "aligned_delta1", "label": "δ < 1.25, aligned", "unit": "", "better": "higher"},
    {"key": "aligned_rmse", "label": "RMSE, aligned", "unit": "m", "better": "lower"},
    {"key": "sqrel", "label": "SqRel", "unit": "m", "better": "lower"},
    {"key": "rmselog", "label": "RMSE log", "unit": "", "better": "lower"},
    {"key": "log10", "label": "log10", "unit": "", "better": "lower"},
    {"key": "silog", "label": "SILog", "unit": "", "better": "lower"},
    {"key": "delta2", "label": "δ < 1.25²", "unit": "", "better": "higher"},
    {"key": "delta3", "label": "δ < 1.25³", "unit": "", "better": "higher"},
]
SETTING_COLUMN = {"key": "setting", "label": "layers, rate, weight decay", "unit": ""}
RATE_COLUMN = {"key": "rate", "label": "rate", "unit": ""}
PREDICTED_COLUMN = {
    "key": "predicted_r2_within",
    "label": "R² within images, predicted tokens",
    "unit": "",
    "better": "higher",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe's table in the form that run folders keep, with arrays for pictures and a readout to predict with.

    `variant` tells its files from those of the same task by its default protocol.
    """

    table: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    readout: DepthReadout | None = None
    variant: str = ""

    def value(self, row: str, key: str) -> float:
        """Return one figure."""
        return float(next(entry[key] for entry in self.table["rows"] if entry["name"] == row))


def probe(task: str, config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Run the probe `task` (knn, linear, mlp, attentive or depth) on a trained encoder; `config` says on which data.

    The baselines are computed on the same images.
    """
    tasks = ("knn", "linear", "mlp", "attentive", "depth")
    if task not in tasks:
        raise BadInput(f"there is no probe {task!r}{nearest(task, tasks)}: choose from {', '.join(tasks)}")
    if task == "mlp" or (task == "linear" and config.evaluation.linear_protocol == "sweep"):
        return trained_probe(task, config, encoder, where)
    if task == "depth":
        return (depth_probe if config.evaluation.depth_readout == "ridge" else readout_probe)(config, encoder, where)
    return Probe(*classification_tables(config, encoders(config, encoder, where), (task,))[task])


def trained_probe(task: str, config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """The I-JEPA protocol's linear sweep, or the paper's head with its accuracy after each epoch."""
    train, val = Views(config, "train"), Views(config, "val")
    rows: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    if not train.source.classes:
        raise BadInput(
            f"the {task} probe needs labels, and {config.data.root} has none: give a class folder or `scenes`"
        )
    epochs, layers = config.evaluation.probe_epochs, min(TOGETHER, len(encoder.blocks))
    blocks = list(range(len(encoder.blocks) - layers, len(encoder.blocks)))
    for name, each in ((RANDOM, build_encoder(config)), (config.name, encoder)):
        encode = encode_layers(each, blocks, where, config.evaluation.precision)
        seen, unseen = (pooled_features(encode, views()) for views in (train, val))
        if not rows:
            rows.append({"name": "chance", "val_accuracy": 100 * chance(seen, unseen)})
        if task == "mlp":
            curves = mlp(seen, unseen, encoder.width, epochs=epochs, seed=config.seed)
            own = {"train_accuracy": curves.train_accuracy[-1], "val_accuracy": curves.val_accuracy[-1]}
            short = "random_" if name == RANDOM else ""
            arrays |= {f"{short}train": curves.train_accuracy, f"{short}val": curves.val_accuracy}
            rows.append({"name": name, **{key: 100 * float(value) for key, value in own.items()}})
        else:
            found = sweep(seen, unseen, encoder.width, epochs=epochs, seed=config.seed)
            best = found.chosen
            rows.append(
                {
                    "name": name,
                    "train_accuracy": 100 * found.train_accuracy,
                    "val_accuracy": 100 * found.val_accuracy,
                    "setting": f"{best.layers}, {best.lr:g}, {best.weight_decay:g}",
                }
            )
    how = (
        f"two layers ({HIDDEN} hidden) on standardised mean-pooled tokens"
        if task == "mlp"
        else f"linear classifier on standardised mean-pooled tokens of the last or the last {layers} layers, the best "
        f"of {len(SETTINGS)} settings by a fifth of the training data"
    )
    protocol = f"{how} of the frozen {config.evaluation.which} encoder, {epochs} epochs; {views_text(train, val)}"
    columns = [*ACCURACY, *([SETTING_COLUMN] if task == "linear" else [])]
    variant = "-sweep" if task == "linear" else ""
    return Probe(table(task, train.source, protocol, columns, rows), arrays, variant=variant)


def diagnostics_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Rank, spread and position share of the embeddings that training predicts; no labels, no depth needed."""
    return Probe(*classification_tables(config, encoders(config, encoder, where), ("diagnose",))["diagnose"])


def probe_config(saved: Checkpoint, data: str | None, overrides: Iterable[str] = ()) -> RunConfig:
    """The checkpoint's configuration with other data; subsets of the training data are not carried over."""
    content = to_mapping(saved.config)
    if data is not None and data != content["data"]["root"]:
        content["data"] |= {"root": data, "kind": None, "classes": None, "images_per_class": None}
        content["data"] |= {"val_prefixes": None, "val_list": None}
    config = build_config(content, list(overrides))
    own = replace(config.train, device=saved.config.train.device, threads=saved.config.train.threads)
    if own != saved.config.train:
        raise BadInput("train.* belongs to the checkpoint; a probe takes train.device and train.threads alone")
    for part in ("model", "masks", "guidance", "predictor", "optim", "seed"):
        if getattr(config, part) != getattr(saved.config, part):
            raise BadInput(f"{part}.* belongs to the checkpoint; a probe takes data.*, evaluation.* and train.device")
    _ = config.grid  # refuses an image size that patches do not divide
    return config


# depth ----------------------------------------------------------------------------------------------------


def depth_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Linear readout of disparity; see `evaluation.depth_probe`."""
    train, val = Views(config, "train"), Views(config, "val")
    found = depth_tables(config, train, val, encoders(config, encoder, where))
    protocol = (
        f"ridge readout of 2 x 2 disparities a patch from the frozen {config.evaluation.which} encoder's last layer, "
        f"its strength chosen on a fifth of the training data, averaged over cells of "
        f"{config.model.patch_size / 2:g} px; {whole_views_text(train, val)}"
    )
    result = table("depth", train.source, protocol, DEPTH_COLUMNS, found.rows)
    return Probe(result, _depth_arrays(found, config.name), found.readouts[config.name])


def readout_probe(config: RunConfig, encoder: VisionTransformer, where: torch.device) -> Probe:
    """Depth as readouts of the field's kind tell it, pixel by pixel; see `evaluation.depth_readouts`."""
    asked = config.evaluation
    assert asked.depth_readout != "ridge"
    plan = Plan(
        kind=asked.depth_readout,
        size=config.data.size,
        patch_size=config.model.patch_size,
        steps=asked.depth_steps,
        seed=config.seed,
        nearest=asked.nearest,
        farthest=asked.farthest,
        pictures=asked.pictures,
    )
    train, val = Views(config, "train"), Views(config, "val")
    _refuse_without_depth(train, val)
    blocks = len(encoder.blocks)
    layers = layers_of(plan.kind, blocks)
    named = {RANDOM: build_encoder(config), config.name: encoder}
    found = readout_table(
        {name: encode_layers(each, layers, where, asked.precision) for name, each in named.items()}, train, val, plan
    )
    protocol = (
        f"{describe(plan, layers, blocks, found.mean_map)}, from the frozen {asked.which} encoder; averaged over "
        f"pixels; {whole_views_text(train, val)}"
    )
    result = table("depth", train.source, protocol, [*DEPTH_COLUMNS, RATE_COLUMN], found.rows)
    return Probe(result, _depth_arrays(found, config.name), variant=f"-{plan.kind}")


def _depth_arrays(found: DepthTable, name: str) -> dict[str, np.ndarray]:
    """Pictures of a depth table as run folders keep them; `name` is the trained encoder's row."""
    shown = found.pictures
    return {
        "images": shown.images,
        "truth": shown.truth,
        "mean_map": found.mean_map.values.numpy(),
        "random": shown.predictions[RANDOM],
        "prediction": shown.predictions[name],
        **{key: found.scores[name].per_image[key] for key in ("within_residual", "within_total")},
    }


def _refuse_without_depth(*sets: Views) -> None:
    for source in (each.source for each in sets):
        if not source.has_depth:
            raise BadInput(f"the depth probe needs depth, and {source.name} has none: give an RGB-D folder or `scenes`")


def depth_tables(config: RunConfig, train: Views, val: Views, named: Mapping[str, Encode]) -> DepthTable:
    """Depth table of encoders on two sets, in whole views."""
    _refuse_without_depth(train, val)
    return depth_table(named, train, val, config.model.patch_size, config.evaluation.pictures)


def decode_probe(config: RunConfig, saved: Checkpoint, where: torch.device) -> Probe:
    """Depth as the run's own pixel head decodes it; see `evaluation.decoded`."""
    found, train, val = decode_table(config, saved, where)
    shown, guidance, columns = found.pictures, saved.config.guidance, list(DEPTH_COLUMNS)
    read = "predicted tokens" if guidance.read == "predicted" else "the tokens of the whole image"
    hidden = "pixels of target patches" if guidance.scope == "target" else "all pixels"
    protocol = f"the run's own head from {read}{f' on {hidden}' if guidance.read == 'predicted' else ''}"
    if guidance.read != "dense":
        columns.append(PREDICTED_COLUMN)
        protocol += f"; predicted tokens under masks as in training, judged on {hidden}"
    protocol += f"; {whole_views_text(train, val)}"
    arrays = {
        "images": shown.images,
        "truth": shown.truth,
        "mean_map": found.mean_map.values.numpy(),
        "prediction": shown.predictions[config.name],
    }
    return Probe(table("decode", train.source, protocol, columns, found.rows), arrays)


def guidance_probes(
    config: RunConfig, saved: Checkpoint, against: Checkpoint | None, where: torch.device
) -> list[Probe]:
    """Whether depth got into the features of a guided run, or of any run `against` its twin; see `guidance`.

    Nothing for an unguided run by itself, and where the teacher was ground truth and this data has no depth.
    """
    guided = config.guidance.kind != "none" and config.train.objective == "jepa"
    network = config.guidance.kind == "feature" and config.guidance.teacher != "depth"
    seeing = network or all(Views(config, split).source.has_depth for split in ("train", "val"))
    if against is None and not (guided and seeing):
        return []
    return [Probe(content) for content in guidance_tables(config, saved, against, where)]


def gates_probe(config: RunConfig, saved: Checkpoint, where: torch.device) -> Probe:
    """Cheap tests that tell why depth does not decode; see `evaluation.gates`."""
    return Probe(*gates_table(config, saved, where))


# during training ------------------------------------------------------------------------------------------


def probe_during_training(
    encoder: VisionTransformer, config: RunConfig, where: torch.device
) -> tuple[dict[str, float], float]:
    """Probe the evaluated encoder alone; the figures for `metrics.jsonl` and the one that ranks checkpoints.

    Depth (R² within images) ranks where there is depth, else nearest neighbours (the middle one of
    `evaluation.neighbours`); RankMe stands beside them. At most 1,024 training and 512 validation images are read.
    """
    limit = config.evaluation
    limits = {"train_images": limit.train_images or 1024, "val_images": limit.val_images or 512}
    config = build_config(to_mapping(config), [f"evaluation.{key}={value}" for key, value in limits.items()])
    train, val = Views(config, "train"), Views(config, "val")
    with_depth = train.source.has_depth and val.source.has_depth
    if not (train.source.classes or with_depth):
        raise BadInput(f"train.probe_every needs labels or depth, and {config.data.root} has neither")
    encode = encode_with(encoder, where, config.evaluation.precision)
    seen = one_pass(encode, val)
    figures = {"probe_rank_me": rank_me(seen.diagnosis.features)}
    if train.source.classes:
        middle = config.evaluation.neighbours[len(config.evaluation.neighbours) // 2]
        figures["probe_knn"] = knn(one_pass(encode, train).pooled, seen.pooled, middle)
    if with_depth:
        found = depth_tables(config, train, val, {config.name: encode})
        figures["probe_r2_within"] = found.scores[config.name].figures["r2_within"]
    encoder.train()
    return figures, figures.get("probe_r2_within", figures.get("probe_knn", 0.0))


# shared by the probes -------------------------------------------------------------------------------------


def probe_run(config: RunConfig, saved: Checkpoint, tasks: Sequence[str]) -> None:
    """Write the tables of several probes of a run (diagnose too): all that read tokens share one pass over the data."""
    where, which = runtime.device(config.train.device), config.evaluation.which
    encoder = saved.encoder(which)
    together = [task for task in tasks if task not in ("depth", "decode", "mlp")]
    if together:
        for content, arrays in classification_tables(config, encoders(config, encoder, where), together).values():
            write_probe(Probe(content, arrays), saved, which)
    if "mlp" in tasks:
        write_probe(trained_probe("mlp", config, encoder, where), saved, which)
    if "linear" in tasks and config.evaluation.linear_protocol == "sweep":  # beside the one that runs are compared by
        write_probe(trained_probe("linear", config, encoder, where), saved, which)
    if "depth" in tasks:
        write_probe(depth_probe(config, encoder, where), saved, which)
        if config.evaluation.depth_readout != "ridge":  # beside the ridge's, which runs are compared by
            write_probe(readout_probe(config, encoder, where), saved, which)
    if "decode" in tasks:
        write_probe(decode_probe(config, saved, where), saved, which)


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
        name = f"probes/{result.table['task']}{result.variant}{elsewhere}"
        write_whole(folder / f"{name}.json", to_json(result.table))
        if result.arrays:
            RunFolder(folder).save_arrays(name, result.arrays)
        if result.readout is not None:
            origin = {"step": str(saved.step), "which": which, "data": data}
            result.readout.save(folder / "probes" / "depth.safetensors", origin)
