"""Depth from frozen features: the two ridges of `evaluation.depth_probe`, or a readout of the field's kind.

The ridges are what runs are compared by, and their readout is kept for `depthjepa predict`. What is drawn of stored
maps serves every task that stores maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from depthjepa.columns import Column, table
from depthjepa.data.groups import FOLDS, Places
from depthjepa.drawing import figures
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.depth_probe import SUMS, DepthTable, depth_tables
from depthjepa.evaluation.depth_readouts import Plan, describe, encode_layers, layers_of, readout_tables
from depthjepa.evaluation.gathering import RANDOM, RAW, places_in, raw_patches, whole_views_text
from depthjepa.evaluation.normal_probe import NormalTable
from depthjepa.evaluation.probes.task import DEPTH, OwnTask, Picture, Probe, Resampled, Section, Subject, Task, Variant
from depthjepa.evaluation.table_rows import MEAN_MAP, SCENE_MAP
from depthjepa.evaluation.teacher_rows import ITSELF, READ_OUT, teacher_rows
from depthjepa.runs import Arrays, Run, probe_files, same_images, stored_alike

PICTURES = 6  # rows of a figure
BASELINES = {  # rows of arrays of a file
    "teacher_itself": ITSELF,
    "teacher": READ_OUT,
    "random": RANDOM,
    "raw": RAW,
    "scene_map": SCENE_MAP,
}
MAPS = ("prediction", *BASELINES, "mean_map")  # arrays of a file
Draw = Callable[..., Figure]  # of images, the truth and maps by name, with or without photographs
ALIGNED = "the same once scale and shift of each image's log depth are fitted to its ground truth"
COLUMNS = (
    Column(
        "r2_within",
        "R² within images",
        "share of the log depth's variation within images that is explained, over the cells of all images, once the "
        "training set's mean map and each image's own mean are taken away; 0 is the mean map, 1 is perfect",
        better="higher",
    ),
    Column(
        "r2_within_median",
        "R² within, median",
        "the same of each image by itself, and the median over images",
        better="higher",
    ),
    Column(
        "r2_between",
        "R² between images",
        "share of the variation of the images' mean log depth that is explained",
        better="higher",
    ),
    Column(
        "r2_beyond_scene",
        "R² beyond the scene map",
        "R² within images with the training mean map of the image's own scene in the mean map's place, over the images "
        "whose scene training has; 0 is recognising the scene",
        better="higher",
    ),
    Column(
        "r2_position",
        "R² over the mean map",
        "share of the log depth's variation about the training set's mean map that is explained",
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
    """Linear readout of log depth; see `evaluation.depth_probe`."""
    config, train, val = subject.config, subject.fitted, subject.judged
    patch, asked = config.model.patch_size, config.evaluation
    places = _places(subject)
    teacher = teacher_rows(config, train, val, subject.device)
    encoders = {RAW: raw_patches(patch, subject.device), **subject.encoders()}
    found = depth_tables(
        encoders,
        train,
        val,
        places,
        patch,
        asked.cell_share,
        asked.pictures,
        others=teacher.predictions,
        apart=teacher.read,
    )
    protocol = (
        f"version 2: two ridges, from image means and from the rest of each token of the frozen {asked.which} "
        f"encoder's last layer, to the log depth of 2 x 2 cells of {patch / 2:g} px a patch; cells with depth on at "
        f"least {asked.cell_share:.0%} of their pixels count; strengths by {FOLDS} folds of {places.folds.by}; "
        f"{whole_views_text(train, val)}{_fitted_text(subject)}"
    )
    whole = found[-1]
    beside = {name: map_arrays(whole, name, subject.random_row(name)) for name in subject.compared}
    arrays, readout = map_arrays(whole, config.name), whole.readouts[config.name]
    # Beside the protocol, which is the same for runs with other teachers and without one: they share a table.
    sentences = teacher.sentences(whole.rows)
    verdict = {"verdict": sentences} if sentences else {}
    yield Probe(tables(TASK, protocol, found) | verdict, arrays, beside, readout, _fitted_variant(subject))


def _places(subject: Subject) -> Places:
    return places_in(subject.fitted, subject.judged, elsewhere=subject.config.evaluation.fit_on is not None)


def _fitted_text(subject: Subject) -> str:
    if subject.config.evaluation.fit_on is None:
        return ""
    return f"; fitted on other data: {subject.fitted.source.name}"


def _fitted_variant(subject: Subject) -> str:
    """What the files of a readout that is fitted on other data than the run's own configuration says are called."""
    asked, saved = subject.config.evaluation.fit_on, subject.saved
    if asked is None or (saved is not None and saved.config.evaluation.fit_on == asked):
        return ""
    name = re.sub(r"\W+", "_", Path(asked).name)
    return f"-on-{name}"


def run_readout(subject: Subject) -> Probe:
    """Depth as readouts of the field's kind tell it, pixel by pixel; see `evaluation.depth_readouts`."""
    config, encoder, train, val = subject.config, subject.encoder, subject.fitted, subject.judged
    asked = config.evaluation
    assert asked.depth_readout != "ridge"
    blocks = encoder.depth
    layers = layers_of(asked.depth_readout, blocks)
    subject.refuse_shallow(
        f"evaluation.depth_readout={asked.depth_readout}", layers, "evaluation.depth_readout=linear or ridge"
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
        name: encode_layers(each, layers, subject.device, asked.precision) for name, each in subject.named.items()
    }
    found = readout_tables(encoders, train, val, _places(subject), plan)
    protocol = (
        f"{describe(plan, layers, blocks, found[-1].mean_map)}, from the frozen {asked.which} encoder; averaged over "
        f"pixels; {whole_views_text(train, val)}{_fitted_text(subject)}"
    )
    return Probe(
        tables(TASK, protocol, found),
        map_arrays(found[-1], config.name),
        variant=f"-{plan.kind}{_fitted_variant(subject)}",
    )


def tables(task: Task, protocol: str, found: Sequence[DepthTable | NormalTable]) -> dict[str, Any]:
    """The table of all data together, and in its `sets` those of several data sets, each by itself."""
    *sets, whole = [
        table(task.name, each.data, f"{protocol}{_scenes_text(each)}", task.columns, each.rows) for each in found
    ]
    return whole | ({"sets": sets} if sets else {})


def _scenes_text(found: DepthTable | NormalTable) -> str:
    judged = len(found.groups)
    if not found.scenes:
        return f"; no scene map: training has the scene of none of {judged} validation images"
    if found.mixed:
        return "; scene map: that of the image's scene, or of its data set where training has no such scene"
    rest = "" if found.scenes == judged else ", the others get the mean map"
    return f"; scene map: training has the scene of {found.scenes} of {judged} validation images{rest}"


def map_arrays(found: DepthTable, name: str, random: str = RANDOM) -> dict[str, np.ndarray]:
    """Maps of a table as run folders keep them (disparity [1/m]), and what its figures are summed from.

    `name` is the encoder's row and `random` that of its initial weights; `group` says which scene or place each judged
    image is of, empty where nothing does. Baselines have their maps and sums under their own words.
    """
    shown, mean_map = found.pictures, found.mean_map
    arrays = {
        "images": shown.images,
        "truth": shown.truth,
        "mean_map": (-mean_map.values).exp().numpy(),
        "measured": mean_map.measured.numpy(),
        "prediction": shown.predictions[name],
        "group": np.array(found.groups),
        **{key: found.scores[name].per_image[key] for key in SUMS},
    }
    for key, row in rows_beside(found, random).items():
        arrays[key] = shown.predictions[row]
        arrays[f"{key}_within_residual"] = found.scores[row].per_image["within_residual"]
    return arrays


def rows_beside(found: DepthTable | NormalTable, random: str) -> dict[str, str]:
    """The rows of baselines whose maps are kept, by the names of their arrays; `random` is that of initial weights."""
    rows = BASELINES | {"random": random} | ({} if found.scenes else {"scene_map": ""})
    return {key: row for key, row in rows.items() if row in found.pictures.predictions}


def resampled_within(arrays: Mapping[str, np.ndarray], counts: Float64[np.ndarray, " images"]) -> float:
    """R² within images where each image counts so often."""
    residual, total = (np.nan_to_num(arrays[name]) for name in ("within_residual", "within_total"))
    return float(1 - counts @ residual / (counts @ total))


def depth_figures(runs: Sequence[Run], images: int = PICTURES) -> list[Captioned]:
    """Ground truth, each run, random encoder and mean map; one figure for each set of equal images."""
    seen = (
        "Each row is one image of the evaluation set. The ground truth and what a readout of each model's "
        "frozen features predicts are coloured by disparity (bright is near), all on the one scale of the "
        "row; grey is without a measurement, in the maps of models and in the mean map in all training images. The "
        "mean map is the average of the training set, the same for every image, and the scene map that of the image's "
        "own scene, which only has to be recognised; the random encoder was never trained. Of a run that a network "
        "guides, what that teacher says of the same images stands beside it."
    )
    failed = (
        "a model's panels would look like the mean map (it knows where depth usually lies and nothing of "
        "this image), or no better than the random encoder (the readout alone gets as much from the pixels)."
    )
    return map_figures(runs, TASK.name, seen, failed, images=images)


def map_figures(
    runs: Sequence[Run], task: str, seen: str, failed: str, draw: Draw | None = None, images: int = PICTURES
) -> list[Captioned]:
    """Figures of the maps that a task stored (see `map_arrays`), one for each set of equal images.

    `draw`: what draws them; None: as disparity. `images`: how many at most, one a row.
    """
    return [
        Captioned(_rows(group, draw or figures.depth_rows, images), seen, failed)
        for file in probe_files(runs, f"{task}*.npz")
        for group in same_images(runs, file, "truth", "prediction")
    ]


def _rows(group: list[tuple[Run, Arrays]], draw: Draw, most: int) -> Figure:
    group = [(run, _where_measured(arrays)) for run, arrays in group]
    images = group[0][1]["images"][:most]
    truth = max((arrays["truth"] for _, arrays in group), key=np.size)
    maps = {run.name: arrays["prediction"] for run, arrays in group}
    baselines: Arrays = {}
    for _, arrays in group:
        baselines = arrays | baselines
    maps |= _beside(baselines)
    if "mean_map" in baselines:
        maps[MEAN_MAP] = np.repeat(baselines["mean_map"][None], len(images), axis=0)
    maps = {name: each[: len(images)] for name, each in maps.items()}
    return draw(images, truth[: len(images)], maps)


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The maps of `probe RUN depth` side by side."""
    return show_maps(TASK.name, runs, photographs)


def show_maps(task: str, runs: Mapping[str, Path], photographs: bool, draw: Draw = figures.depth_rows) -> Figure:
    """The maps that a task stored of several runs, on the same images."""
    stored = {name: _where_measured(arrays) for name, arrays in stored_alike(runs, task, "images").items()}
    first = next(iter(stored.values()))
    maps = {name: arrays["prediction"] for name, arrays in stored.items()}
    maps |= _beside(first)
    maps |= {MEAN_MAP: np.broadcast_to(first["mean_map"], first["truth"].shape)}
    return draw(first["images"], first["truth"], maps, photographs=photographs)


def _beside(arrays: Arrays) -> Arrays:
    """Maps of baselines by the names of their rows; of a teacher what it says itself, or else its readout."""
    found = {name: arrays[key] for key, name in BASELINES.items() if key in arrays}
    return {name: each for name, each in found.items() if name != READ_OUT or ITSELF not in found}


def _where_measured(arrays: Arrays) -> Arrays:
    """The arrays with nan in all maps but the truth where no training image had a measurement (see `MeanMap`)."""
    measured = arrays.get("measured")
    if measured is None:  # older files do not say
        return arrays
    maps = {name: arrays[name] for name in MAPS if name in arrays}
    return arrays | {name: np.where(measured, each, np.nan) for name, each in maps.items()}


TASK = OwnTask(
    name="depth",
    title="Depth from frozen features",
    about="depth by a linear readout of each patch",
    columns=(*COLUMNS, RATE),
    usual=True,
    guesses=(MEAN_MAP, SCENE_MAP, RAW, READ_OUT, ITSELF),
    needs=(DEPTH,),
    section=Section("Depth read out of the features", depth_figures, maps=True),
    picture=Picture("maps of `probe RUN depth`", show, photographs=True),
    reads=("depth_readout", "cell_share", "teacher_row", "fit_on", "judge_training"),
    resampled=Resampled("r2_within", resampled_within),
    variant=Variant(
        lambda config: config.evaluation.depth_readout != "ridge",
        "evaluation.depth_readout=linear, linear4 or dpt",
        run_readout,
        reads=("depth_steps", "nearest", "farthest"),
    ),
    run=run,
)
