"""Sections of a report: what run folders hold as arrays and curves -> figures, each with what is seen and its failure.

Runs stand side by side where the images are the same; every caption says what would be seen had it failed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from depthjepa.drawing import charts, figures
from depthjepa.report.html import embed, listed
from depthjepa.report.tables import is_number
from depthjepa.runs import Arrays, Run, read_arrays

PICTURES = {"depth": 6, "gates": 4, "features": 5, "masks": 3, "guidance": 4}


def depth_figures(runs: Sequence[Run]) -> list[str]:
    """Ground truth, each run, random encoder and mean map; one figure for each set of equal images."""
    seen = (
        "Each row is one image of the evaluation set. The ground truth and what a readout of each model's "
        "frozen features predicts are coloured by disparity (bright is near), all on the one scale of the "
        "row; grey is without a measurement. The mean map is the average of the training set, the same for "
        "every image; the random encoder was never trained."
    )
    failed = (
        "a model's panels would look like the mean map (it knows where depth usually lies and nothing of "
        "this image), or no better than the random encoder (the readout alone gets as much from the pixels)."
    )
    return [_depth_figure(group, seen, failed) for group in _depth_maps(runs, "depth*.npz")]


def decoded_figures(runs: Sequence[Run]) -> list[str]:
    """Ground truth, the map that each pixel-guided run decodes, and the mean map."""
    seen = (
        "Each row is one image that no run was trained on. The ground truth and what each run's own head decodes are "
        "coloured by disparity (bright is near), all on the one scale of the row; grey is without a measurement, or "
        "not judged (with scope `target` the head answers for hidden patches alone)."
    )
    failed = "a run's panels would look like the mean map, the average of the training set, in every row."
    return [_depth_figure(group, seen, failed) for group in _depth_maps(runs, "decode*.npz")]


def _depth_maps(runs: Sequence[Run], pattern: str) -> list[list[tuple[Run, Arrays]]]:
    return [group for file in _probe_files(runs, pattern) for group in _same_images(runs, file, "truth", "prediction")]


def _depth_figure(group: list[tuple[Run, Arrays]], seen: str, failed: str) -> str:
    images = group[0][1]["images"][: PICTURES["depth"]]
    truth = max((arrays["truth"] for _, arrays in group), key=np.size)
    maps = {run.name: arrays["prediction"] for run, arrays in group}
    baselines: Arrays = {}
    for _, arrays in group:
        baselines = arrays | baselines
    if "random" in baselines:
        maps["random encoder"] = baselines["random"]
    if "mean_map" in baselines:
        maps["mean map"] = np.repeat(baselines["mean_map"][None], len(images), axis=0)
    maps = {name: each[: len(images)] for name, each in maps.items()}
    return embed(figures.depth_rows(images, truth[: len(images)], maps), seen, failed)


def gate_figures(runs: Sequence[Run]) -> list[str]:
    """What `diagnose --gates` found of each run: input swap, layer sweep, and what each head makes of a few images."""
    maps = [
        _gate_figure(run, arrays)
        for file in _probe_files(runs, "gates*.npz")
        for run in runs
        if (arrays := read_arrays(run, file, "images", "truth", "names", "maps"))
    ]
    return [*_readout_gates(runs), *maps]


def _readout_gates(runs: Sequence[Run]) -> list[str]:
    """Bars of the input swap and curves of the layer sweep, the runs of each set of data together."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        for content in _tables(run, "gates"):
            found.setdefault(content["data"], {})[run.name] = {row["name"]: row["figure"] for row in content["rows"]}
    failed = (
        "the target encoder's bar would be no longer than those of raw patches and of the random encoder, or the last "
        "block would tell less than those before it: what the loss needs is not what depth takes."
    )
    drawn = []
    for data, gates in found.items():
        seen = (
            f"{listed([f'Run {run}' for run in gates])} on {data}. Bars: depth of the same hidden patches as the same "
            "ridge reads it from different inputs (1: perfect, 0: no more than the mean map). The target encoder sees "
            "the whole image, predicted tokens come from the visible patches alone. Lines: the same readout from the "
            "tokens after each block, all patches seen."
        )
        figure = charts.gate_panels(gates)
        if figure is not None:
            drawn.append(embed(figure, seen, failed))
    return drawn


def _gate_figure(run: Run, arrays: Arrays) -> str:
    images, truth = (arrays[key][: PICTURES["gates"]] for key in ("images", "truth"))
    maps = arrays["maps"][:, : PICTURES["gates"]]
    seen = (
        f"Run {run.name}: each pixel head with its scope, trained end to end on these very images with masks drawn "
        "anew at each step, judged under masks that it was not trained with. Disparity (bright is near), one scale "
        "a row; grey is without a measurement, or was not hidden by this mask (scope target)."
    )
    failed = (
        "a head could not even repeat the images that it was trained on: what it reads does not hold their depth, or "
        "the head cannot say it. Then more data or steps are no cure."
    )
    names = [str(name) for name in arrays["names"]]
    return embed(figures.depth_rows(images, truth, dict(zip(names, maps, strict=True))), seen, failed)


def feature_figures(runs: Sequence[Run]) -> list[str]:
    """Principal colours of the tokens; one figure for each set of equal images."""
    return [_feature_figure(group) for group in _same_images(runs, "figures/features.npz", "tokens")]


def _feature_figure(group: list[tuple[Run, Arrays]]) -> str:
    images = group[0][1]["images"][: PICTURES["features"]]
    widths = {arrays["tokens"].shape[-1] for _, arrays in group}
    tokens = {
        f"{run.name}\n({arrays['tokens'].shape[-1]} wide)" if len(widths) > 1 else run.name: arrays["tokens"]
        for run, arrays in group
    }
    for _, arrays in group:
        if "random" in arrays:
            width = f"\n({arrays['random'].shape[-1]} wide)" if len(widths) > 1 else ""
            tokens.setdefault(f"random encoder{width}", arrays["random"])
    tokens = {name: array[: len(images)] for name, array in tokens.items()}
    seen = (
        "Every patch is coloured by the three strongest principal components of its features: patches of "
        f"like colour are alike to the model. {JOINT_BASIS if len(widths) == 1 else OWN_BASIS}"
    )
    failed = (
        "one flat colour everywhere is collapse; the same gradient in every image means that features say "
        "where a patch is and not what it shows; colours that follow brightness alone are what a random "
        "encoder gives."
    )
    return embed(figures.feature_pca(images, tokens), seen, failed)


JOINT_BASIS = "All models share one basis and one scale."
OWN_BASIS = (
    "Models of equal width share one basis and one scale; each width has its own, so that colours cannot be "
    "compared between widths."
)


def accuracy_figures(runs: Sequence[Run]) -> list[str]:
    """Accuracy of the two-layer head after each epoch, all runs in one figure for each set of data."""
    groups: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for file in _probe_files(runs, "mlp*.npz"):
        for run in runs:
            if (arrays := read_arrays(run, file, "train", "val")) is None:
                continue
            curves = groups.setdefault(file, {})
            curves[run.name] = arrays["train"], arrays["val"]
            if "random_train" in arrays:
                curves.setdefault("random encoder", (arrays["random_train"], arrays["random_val"]))
    seen = (
        "Two layers on the pooled features of the frozen encoder, as in figure 4 of the source paper: accuracy after "
        "each epoch on the images that they are trained on (all that the paper shows) and on others. The random "
        "encoder was never trained."
    )
    failed = (
        "a run's curve on validation images would lie on the random encoder's, however high that on training images: "
        "images can be learned by heart from any features."
    )
    return [embed(charts.accuracy_curves(curves), seen, failed) for curves in groups.values()]


def neighbour_figures(runs: Sequence[Run]) -> list[str]:
    """Images and those that each model holds for nearest; one figure for each set of equal images."""
    seen = (
        "Validation images, and the training images whose pooled features are nearest by cosine, model by model. Green "
        "frames have the image's class, orange ones another."
    )
    failed = "a run would find what the random encoder finds: images of like colours and brightness, of any class."
    needed = ("found", "alike", "random_found", "random_alike")
    drawn = []
    for file in _probe_files(runs, "knn*.npz"):
        for group in _same_images(runs, file, *needed):
            first = group[0][1]
            found = {run.name: arrays["found"] for run, arrays in group} | {"random encoder": first["random_found"]}
            alike = {run.name: arrays["alike"] for run, arrays in group} | {"random encoder": first["random_alike"]}
            drawn.append(embed(figures.neighbour_rows(first["images"], found, alike), seen, failed))
    return drawn


def layer_figures(runs: Sequence[Run]) -> list[str]:
    """How well a fresh readout of each block tells the teacher's latents, and how like them its tokens are."""
    said = {
        "guidance-layers": (
            "R² within images of a fresh ridge",
            "the run's line would lie on its twin's or the random encoder's: depth went into the head alone",
        ),
        "guidance-alignment": (
            "linear CKA with the teacher's latents, less chance",
            "all lines would lie near 0: no block has come nearer to the teacher than chance would bring it",
        ),
    }
    drawn = []
    for run in runs:
        for task, (label, failed) in said.items():
            for content in _tables(run, task):
                values = {
                    row["name"]: [value for key, value in row.items() if key.startswith("block_")]
                    for row in content["rows"]
                }
                seen = f"Diagnosis of {run.name} on {content['data']}: {label}, block by block, on validation images."
                drawn.append(embed(charts.layer_curves(values, label), seen, f"{failed}."))
    return drawn


def _tables(run: Run, task: str) -> list[dict[str, Any]]:
    """A run's tables of one task: one for each set of data."""
    return [content for content in run.probes if content.get("task") == task]


def mask_figures(runs: Sequence[Run]) -> list[str]:
    """One figure for each setting of the masks."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        if (run.path / "figures/masks.npz").is_file():
            settings.setdefault(json.dumps(run.config.get("masks", {}), sort_keys=True), []).append(run)
    return [_mask_figure(group, len(settings) > 1) for group in settings.values()]


def _mask_figure(group: list[Run], several: bool) -> str:
    arrays = read_arrays(group[0], "figures/masks.npz", "images", "context", "targets")
    assert arrays is not None
    images, context, targets = (arrays[key][: PICTURES["masks"]] for key in ("images", "context", "targets"))
    seen = (
        (f"Masks of {listed([run.name for run in group])}. " if several else "")
        + "The context encoder sees the patches of the second column only; from these and from positions the "
        "predictor must tell the features of each target block. Below stands the share of all patches."
    )
    failed = "targets would overlap their context (it gives the answer away), or the context be almost empty."
    return embed(figures.masks_figure(images, context, targets), seen, failed)


def guidance_figures(runs: Sequence[Run]) -> list[str]:
    """Teacher and prediction of the guidance heads: runs side by side where images and teacher are the same."""
    groups = _same_images(runs, "figures/guidance.npz", "teacher", "predicted", same=("images", "teacher"))
    return [_guidance_figure(group) for group in groups]


def _guidance_figure(group: list[tuple[Run, Arrays]]) -> str:
    run, arrays = group[0]
    images, teacher = (arrays[key][: PICTURES["guidance"]] for key in ("images", "teacher"))
    predicted = {each.name: found["predicted"][: PICTURES["guidance"]] for each, found in group}
    channels = teacher.shape[1]
    # A row has room for about nine panels.
    most = max(1, min(4, 8 // (1 + len(group))))
    shown = f"; the first {most} of {channels} channels are shown" if channels > most else ""
    seen = (
        f"What guidance heads are to give (teacher{_teacher_words(run)}) and what those of {listed(list(predicted))} "
        f"give, all on one scale; grey is without a value{shown}.{_crop_words(run)}"
    )
    failed = (
        "the prediction would be the same in every row: the head then gives the teacher's average map, a "
        "shortcut that lowers the loss without looking at the image."
    )
    return embed(figures.latent_rows(images, teacher, predicted, most), seen, failed)


def _teacher_words(run: Run) -> str:
    teacher = run.summary.get("teacher") or {}
    return f": {teacher['name']}, {teacher['unit']}" if teacher else ""


def _crop_words(run: Run) -> str:
    """How far latents that are cut from a cache are from the teacher's own of the same crops."""
    crops = (run.summary.get("teacher") or {}).get("cached_crops")
    if not crops:
        return ""
    return (
        f" They were cut from cached latents of whole images: on {crops['crops']:.0f} crops they correlate with the "
        f"teacher's own at {crops['correlation']:.3f} and differ by {crops['difference']:.3f} deviations (root mean "
        f"square)."
    )


def loss_figure(runs: Sequence[Run]) -> list[str]:
    """Losses and rates against the step, all runs in one figure."""
    curves = {run.name: run.metrics for run in runs}
    if not any(curves.values()):
        return []
    floors = {r.name: r.summary["depth_floor"] for r in runs if is_number(r.summary.get("depth_floor"))}
    starts = {run.name: run.config.get("init") or {} for run in runs if any("loss_depth" in row for row in run.metrics)}
    frozen = {name: steps for name, init in starts.items() if (steps := init.get("frozen_steps"))}
    seen = "Strong lines are running means, pale ones the logged values."
    if frozen:
        seen += " Where the depth loss is shaded, the head alone learned and the rest was frozen."
    failed = []
    if any("loss_jepa" in row for run in runs for row in run.metrics):
        seen += (
            " A lower latent loss is not a better model: its targets are features of the model itself, and a "
            "collapsed model predicts them best."
        )
        failed.append("the latent loss would fall to nearly zero at once (collapse), or jump and not come back")
    if floors:
        failed.append("the depth loss would settle on the dashed line, which one map for all images reaches")
    wrong = "; ".join(failed) or "the loss would stay where it began, or rise"
    return [embed(charts.loss_curves(curves, floors, frozen), seen, f"{wrong}.")]


def _probe_files(runs: Sequence[Run], pattern: str) -> list[str]:
    """Files of arrays that probes wrote, each once: a run may have one for each set of data."""
    return list({f"probes/{file.name}": None for run in runs for file in sorted((run.path / "probes").glob(pattern))})


def _same_images(
    runs: Sequence[Run], file: str, *needed: str, same: Sequence[str] = ("images",)
) -> list[list[tuple[Run, Arrays]]]:
    """Runs that have the file with the arrays `needed`, together where those that are to be the `same` are equal."""
    groups: list[list[tuple[Run, Arrays]]] = []
    for run in runs:
        arrays = read_arrays(run, file, "images", *needed)
        if arrays is None:
            continue
        for group in groups:
            if all(np.array_equal(group[0][1][name], arrays[name], equal_nan=True) for name in same):
                group.append((run, arrays))
                break
        else:
            groups.append([(run, arrays)])
    return groups
