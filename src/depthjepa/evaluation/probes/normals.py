"""Surface normals from frozen features by the two ridges of the depth probe; see `evaluation.normal_probe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from depthjepa.columns import Column
from depthjepa.data.cameras import tells_normals
from depthjepa.data.groups import FOLDS
from depthjepa.data.order import Mixture
from depthjepa.data.samples import Source
from depthjepa.drawing import figures
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.gathering import RANDOM, RAW, Views, places_in, raw_patches, views_text
from depthjepa.evaluation.normal_probe import ANGLES, SUMS, NormalTable, normal_tables
from depthjepa.evaluation.probes.depth import PICTURES, map_figures, rows_beside, show_maps, tables
from depthjepa.evaluation.probes.task import DEPTH, Need, OwnTask, Picture, Probe, Resampled, Section, Subject
from depthjepa.evaluation.surface_normals import WithNormals
from depthjepa.evaluation.table_rows import MEAN_MAP, SCENE_MAP
from depthjepa.runs import Run

SHARE = "share of an image's patches whose angle is below that, averaged over images"
COLUMNS = (
    Column(
        "mean_angle",
        "mean angle",
        "angle between the predicted and the true normal, averaged over the patches of an image and then over images",
        "°",
        "lower",
    ),
    Column(
        "median_angle", "median angle", "its median over the patches of an image, averaged over images", "°", "lower"
    ),
    Column("below_11", "below 11.25°", SHARE, "%", "higher"),
    Column("below_22", "below 22.5°", SHARE, "%", "higher"),
    Column("below_30", "below 30°", SHARE, "%", "higher"),
    Column(
        "r2_within",
        "R² within images",
        "share of the variation of the normals' components within images that is explained, over the patches of all "
        "images, once the training set's mean map and each image's own mean are taken away; 0 is the mean map",
        better="higher",
    ),
    Column(
        "r2_between",
        "R² between images",
        "share of the variation of the images' mean normals that is explained",
        better="higher",
    ),
)


def _cameras_known(source: Source) -> bool:
    """Whether each data set tells the camera of at least one image."""
    parts = source.sources if isinstance(source, Mixture) else (source,)
    return all(any(tells_normals(part, index) for index in range(len(part))) for part in parts)


def _no_camera(data: str) -> str:
    lacks = f"not every data set of {data} gives one" if "," in data else f"{data} gives none"
    return (
        f'needs the focal length of the camera, and {lacks}: write "focal_length": PIXELS into its dataset.json, or '
        f'"focal_length_px": [["", PIXELS]] into its groups.json (pixels at the full width of the images)'
    )


CAMERA = Need(lambda config, train, val: _cameras_known(train) and _cameras_known(val), _no_camera)


def run(subject: Subject) -> Iterable[Probe]:
    """Linear readout of the mean normal of each patch."""
    config, train, val = subject.config, subject.train, subject.val
    patch, asked = config.model.patch_size, config.evaluation
    encoders = {RAW: raw_patches(patch, subject.device), **subject.encoders()}
    places = places_in(train, val)
    found = normal_tables(
        encoders,
        partial(train.of, WithNormals(train.source)),
        partial(val.of, WithNormals(val.source)),
        places,
        patch,
        asked.cell_share,
        asked.pictures,
    )
    protocol = (
        f"two ridges, from image means and from the rest of each token of the frozen {asked.which} encoder's last "
        f"layer, to the mean unit normal of each patch of {patch} px; patches with a normal on at least "
        f"{asked.cell_share:.0%} of their pixels count; angles within an image, then averaged over images; strengths "
        f"by {FOLDS} folds of {places.folds.by}; {views_text(train, val, ', whole views')}{_unknown_text(train, val)}"
    )
    whole = found[-1]
    beside = {name: arrays_of(whole, name, subject.random_row(name)) for name in subject.compared}
    yield Probe(tables(TASK, protocol, found), arrays_of(whole, config.name), beside)


def _unknown_text(*sets: Views) -> str:
    count = sum(not tells_normals(each.source, int(number)) for each in sets for number in each.numbers)
    return f"; {count} without a focal length do not count" if count else ""


def arrays_of(found: NormalTable, name: str, random: str = RANDOM) -> dict[str, np.ndarray]:
    """Maps of a table as run folders keep them (unit normals), and the figures of each image.

    `name` is the encoder's row and `random` that of its initial weights; `group` says which scene or place each judged
    image is of, empty where nothing does. Baselines have their maps and mean angles under their own words.
    """
    shown = found.pictures
    arrays = {
        "images": shown.images,
        "truth": shown.truth,
        "mean_map": found.mean_map,
        "measured": found.measured,
        "prediction": shown.predictions[name],
        "group": np.array(found.groups),
        **{key: found.per_image[name][key] for key in (*ANGLES, *SUMS)},
    }
    for key, row in rows_beside(found, random).items():
        arrays[key] = shown.predictions[row]
        arrays[f"{key}_mean_angle"] = found.per_image[row]["mean_angle"]
    return arrays


def resampled_angle(arrays: Mapping[str, np.ndarray], counts: Float64[np.ndarray, " images"]) -> float:
    """Mean angle where each image counts so often; those without a known normal never do."""
    angles = arrays["mean_angle"]
    return float(counts @ np.nan_to_num(angles) / (counts @ np.isfinite(angles)))


def normal_figures(runs: Sequence[Run], images: int = PICTURES) -> list[Captioned]:
    """Ground truth, each run and the baselines; one figure for each set of equal images."""
    seen = (
        "Each row is one image of the evaluation set. Colours say which way a surface faces: redder to the right, "
        "greener up, bluer to the camera. The ground truth comes from depth and the focal length, or from the rendered "
        "scene itself; grey is where it is not known, in the other maps where no training image knew it. The mean "
        "map is the average of the training set, the same for every image."
    )
    failed = (
        "a model's panels would look like the mean map (it knows which way surfaces mostly face at a place), or no "
        "better than the random encoder and the raw patches."
    )
    return map_figures(runs, TASK.name, seen, failed, figures.normal_rows, images)


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The maps of `probe RUN normals` side by side."""
    return show_maps(TASK.name, runs, photographs, figures.normal_rows)


TASK = OwnTask(
    name="normals",
    title="Surface normals from frozen features",
    about="surface normals by a linear readout of each patch",
    columns=COLUMNS,
    usual=True,
    guesses=(MEAN_MAP, SCENE_MAP, RAW),
    needs=(DEPTH, CAMERA),
    section=Section("Surface normals read out of the features", normal_figures, maps=True),
    picture=Picture("maps of `probe RUN normals`", show, photographs=True),
    resampled=Resampled("mean_angle", resampled_angle),
    reads=("cell_share",),
    run=run,
)
