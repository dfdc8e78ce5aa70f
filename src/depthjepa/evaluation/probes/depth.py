"""Depth from frozen features: the ridge of `evaluation.depth_probe`, or a readout of the field's kind.

The ridge is what runs are compared by, and its readout is kept for `depthjepa predict`. What is drawn of stored maps
serves every task that stores maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from depthjepa.columns import Column
from depthjepa.drawing import figures
from depthjepa.drawing.figures import Captioned
from depthjepa.evaluation.depth_probe import DepthTable, depth_table
from depthjepa.evaluation.depth_readouts import Plan, describe, encode_layers, layers_of, readout_table
from depthjepa.evaluation.gathering import RANDOM, whole_views_text
from depthjepa.evaluation.probes.task import DEPTH, OwnTask, Picture, Probe, Section, Subject, Variant
from depthjepa.faults import BadInput
from depthjepa.runs import Arrays, Run, probe_files, same_images

PICTURES = 6  # rows of a figure
ALIGNED = "the same once scale and shift of each image are fitted to its ground truth"
COLUMNS = (
    Column(
        "r2_within",
        "R² within images",
        "share of the disparity's variation within an image that is explained, once the training set's mean map and "
        "each image's own mean are taken away; 0 is the mean map, 1 is perfect",
        better="higher",
    ),
    Column(
        "r2_position",
        "R² over the mean map",
        "share of the disparity's variation about the training set's mean map that is explained",
        better="higher",
    ),
    Column("absrel", "AbsRel", "mean of |predicted − true depth| ÷ true depth", better="lower"),
    Column("rmse", "RMSE", "root of the mean squared error of depth", "m", "lower"),
    Column("delta1", "δ < 1.25", "share of places whose depth is wrong by less than a factor of 1.25", better="higher"),
    Column("aligned_absrel", "AbsRel, aligned", ALIGNED, better="lower"),
    Column("aligned_delta1", "δ < 1.25, aligned", ALIGNED, better="higher"),
    Column("aligned_rmse", "RMSE, aligned", ALIGNED, "m", "lower"),
    Column("sqrel", "SqRel", "mean of (predicted − true depth)² ÷ true depth", "m", "lower"),
    Column("rmselog", "RMSE log", "root of the mean squared difference of the logarithms of depth", better="lower"),
    Column("log10", "log10", "mean difference of the decimal logarithms of depth", better="lower"),
    Column(
        "silog",
        "SILog",
        "100 times the deviation of the differences of the logarithms within an image",
        better="lower",
    ),
    Column("delta2", "δ < 1.25²", "the same with the square of the factor, 1.56", better="higher"),
    Column("delta3", "δ < 1.25³", "the same with the cube of the factor, 1.95", better="higher"),
)
RATE = Column("rate", "rate", "peak learning rate of the readout, chosen on a fifth of the training images")


def run(subject: Subject) -> Iterable[Probe]:
    """Linear readout of disparity; see `evaluation.depth_probe`."""
    config, train, val = subject.config, subject.train, subject.val
    found = depth_table(subject.encoders(), train, val, config.model.patch_size, config.evaluation.pictures)
    protocol = (
        f"ridge readout of 2 x 2 disparities a patch from the frozen {config.evaluation.which} encoder's last layer, "
        f"its strength chosen on a fifth of the training data, averaged over cells of "
        f"{config.model.patch_size / 2:g} px; {whole_views_text(train, val)}"
    )
    content = TASK.table(train.source, protocol, found.rows)
    yield Probe(content, map_arrays(found, config.name), found.readouts[config.name])


def run_readout(subject: Subject) -> Probe:
    """Depth as readouts of the field's kind tell it, pixel by pixel; see `evaluation.depth_readouts`."""
    config, encoder, train, val = subject.config, subject.encoder, subject.train, subject.val
    asked = config.evaluation
    assert asked.depth_readout != "ridge"
    blocks = encoder.depth
    layers = layers_of(asked.depth_readout, blocks)
    foreign = subject.backbone is not None and subject.saved is None
    if foreign and len(set(layers)) < len(layers):  # a shallow run of ours gives some twice
        raise BadInput(
            f"evaluation.depth_readout={asked.depth_readout} reads {len(layers)} layers, and {config.name} has {blocks}"
            f": take evaluation.depth_readout=linear or ridge"
        )
    plan = Plan(
        kind=asked.depth_readout,
        size=config.data.size,
        patch_size=config.model.patch_size,
        steps=asked.depth_steps,
        seed=config.seed,
        nearest=asked.nearest,
        farthest=asked.farthest,
        pictures=asked.pictures,
        widths=tuple(encoder.widths[layer] for layer in layers),
    )
    encoders = {
        name: encode_layers(each, layers, subject.where, asked.precision) for name, each in subject.named.items()
    }
    found = readout_table(encoders, train, val, plan)
    protocol = (
        f"{describe(plan, layers, blocks, found.mean_map)}, from the frozen {asked.which} encoder; averaged over "
        f"pixels; {whole_views_text(train, val)}"
    )
    content = TASK.table(train.source, protocol, found.rows)
    return Probe(content, map_arrays(found, config.name), variant=f"-{plan.kind}")


def map_arrays(found: DepthTable, name: str) -> dict[str, np.ndarray]:
    """Maps of a table as run folders keep them, and what its figures are summed from; `name` is the encoder's row."""
    shown = found.pictures
    return {
        "images": shown.images,
        "truth": shown.truth,
        "mean_map": found.mean_map.values.numpy(),
        "measured": found.mean_map.measured.numpy(),
        "prediction": shown.predictions[name],
        **({"random": shown.predictions[RANDOM]} if RANDOM in shown.predictions else {}),
        **{key: found.scores[name].per_image[key] for key in ("within_residual", "within_total")},
    }


# drawing --------------------------------------------------------------------------------------------------


def depth_figures(runs: Sequence[Run]) -> list[Captioned]:
    """Ground truth, each run, random encoder and mean map; one figure for each set of equal images."""
    seen = (
        "Each row is one image of the evaluation set. The ground truth and what a readout of each model's "
        "frozen features predicts are coloured by disparity (bright is near), all on the one scale of the "
        "row; grey is without a measurement, in the maps of models and in the mean map in all training images. The "
        "mean map is the average of the training set, the same for every image; the random encoder was never trained."
    )
    failed = (
        "a model's panels would look like the mean map (it knows where depth usually lies and nothing of "
        "this image), or no better than the random encoder (the readout alone gets as much from the pixels)."
    )
    return map_figures(runs, TASK.name, seen, failed)


def map_figures(runs: Sequence[Run], task: str, seen: str, failed: str) -> list[Captioned]:
    """Figures of the maps that a task stored (see `map_arrays`), one for each set of equal images."""
    return [
        Captioned(_rows(group), seen, failed)
        for file in probe_files(runs, f"{task}*.npz")
        for group in same_images(runs, file, "truth", "prediction")
    ]


def _rows(group: list[tuple[Run, Arrays]]) -> Figure:
    group = [(run, _where_measured(arrays)) for run, arrays in group]
    images = group[0][1]["images"][:PICTURES]
    truth = max((arrays["truth"] for _, arrays in group), key=np.size)
    maps = {run.name: arrays["prediction"] for run, arrays in group}
    baselines: Arrays = {}
    for _, arrays in group:
        baselines = arrays | baselines
    if "random" in baselines:
        maps[RANDOM] = baselines["random"]
    if "mean_map" in baselines:
        maps["mean map"] = np.repeat(baselines["mean_map"][None], len(images), axis=0)
    maps = {name: each[: len(images)] for name, each in maps.items()}
    return figures.depth_rows(images, truth[: len(images)], maps)


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The maps of `probe RUN depth` side by side."""
    return show_maps(TASK.name, runs, photographs)


def show_maps(task: str, runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The maps that a task stored of several runs, on the same images."""
    stored = {name: _where_measured(_stored(run, task)) for name, run in runs.items()}
    first = next(iter(stored.values()))
    for run, arrays in zip(runs.values(), stored.values(), strict=True):
        if not np.array_equal(arrays["images"], first["images"]):
            raise BadInput(
                f"{run} and {next(iter(runs.values()))} were probed on other images: probe them on the same data at "
                f"one data.image_size"
            )
    maps = {name: arrays["prediction"] for name, arrays in stored.items()}
    maps |= {RANDOM: first["random"]} if "random" in first else {}
    maps |= {"mean map": np.broadcast_to(first["mean_map"], first["truth"].shape)}
    return figures.depth_rows(first["images"], first["truth"], maps, photographs=photographs)


def _where_measured(arrays: Arrays) -> Arrays:
    """The arrays with nan in all maps but the truth where no training image had a measurement (see `MeanMap`)."""
    measured = arrays.get("measured")
    if measured is None:  # older files do not say
        return arrays
    maps = {name: arrays[name] for name in ("prediction", "random", "mean_map") if name in arrays}
    return arrays | {name: np.where(measured, each, np.nan) for name, each in maps.items()}


def _stored(run: Path, task: str) -> Arrays:
    file = run / "probes" / f"{task}.npz"
    if not file.is_file():
        raise BadInput(f"{file} is not there: run `depthjepa probe {run} {task}` first")
    with np.load(file) as stored:
        return dict(stored)


TASK = OwnTask(
    name="depth",
    title="Depth from frozen features",
    about="depth by a linear readout of each patch",
    columns=(*COLUMNS, RATE),
    guesses=("mean map",),
    needs=(DEPTH,),
    section=Section("Depth read out of the features", depth_figures),
    picture=Picture("maps of `probe RUN depth`", show, photographs=True),
    reads=("depth_readout",),
    variant=Variant(
        lambda config: config.evaluation.depth_readout != "ridge",
        "evaluation.depth_readout=linear, linear4 or dpt",
        run_readout,
        reads=("depth_steps", "nearest", "farthest"),
    ),
    run=run,
)
