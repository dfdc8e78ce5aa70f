"""What runs themselves left behind -> captioned figures: features, masks, guidance maps, losses.

What probes stored is drawn by their own files. Runs stand side by side where the images are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from depthjepa.columns import is_number
from depthjepa.drawing import charts, figures, token_figures
from depthjepa.drawing.panels import Captioned
from depthjepa.runs import Arrays, Run, listed, read_arrays, same_images

PICTURES = {"features": 5, "masks": 3, "guidance": 4}  # rows of a figure


def feature_figures(runs: Sequence[Run], rows: int = PICTURES["features"]) -> list[Captioned]:
    """Principal colours of the tokens of so many images at most; one figure for each set of equal images."""
    return [_feature_figure(group, rows) for group in same_images(runs, "figures/features.npz", "tokens")]


def tokens_of(group: Sequence[tuple[Run, Arrays]]) -> dict[str, np.ndarray]:
    """Token maps of runs on equal images, and those of a random encoder of each width, by their names."""
    widths = {arrays["tokens"].shape[-1] for _, arrays in group}
    tokens = {
        f"{run.name}\n({arrays['tokens'].shape[-1]} wide)" if len(widths) > 1 else run.name: arrays["tokens"]
        for run, arrays in group
    }
    for _, arrays in group:
        if "random" in arrays:
            width = f"\n({arrays['random'].shape[-1]} wide)" if len(widths) > 1 else ""
            tokens.setdefault(f"random encoder{width}", arrays["random"])
    return tokens


def _feature_figure(group: list[tuple[Run, Arrays]], rows: int) -> Captioned:
    images = group[0][1]["images"][:rows]
    widths = {arrays["tokens"].shape[-1] for _, arrays in group}
    tokens = tokens_of(group)
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
    return Captioned(token_figures.feature_pca(images, tokens), seen, failed)


JOINT_BASIS = "All models share one basis and one scale."
OWN_BASIS = (
    "Models of equal width share one basis and one scale; each width has its own, so that colours cannot be "
    "compared between widths."
)


def mask_figures(runs: Sequence[Run]) -> list[Captioned]:
    """One figure for each setting of the masks."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        if (run.path / "figures/masks.npz").is_file():
            settings.setdefault(json.dumps(run.config.get("masks", {}), sort_keys=True), []).append(run)
    return [_mask_figure(group, len(settings) > 1) for group in settings.values()]


def _mask_figure(group: list[Run], several: bool) -> Captioned:
    arrays = read_arrays(group[0], "figures/masks.npz", "images", "context", "targets")
    assert arrays is not None
    images, context, targets = (arrays[key][: PICTURES["masks"]] for key in ("images", "context", "targets"))
    seen = (
        (f"Masks of {listed([run.name for run in group])}. " if several else "")
        + "The context encoder sees the patches of the second column only; from these and from positions the "
        "predictor must tell the features of each target block. Below stands the share of all patches."
    )
    failed = "targets would overlap their context (it gives the answer away), or the context be almost empty."
    return Captioned(figures.masks_figure(images, context, targets), seen, failed)


def guidance_figures(runs: Sequence[Run]) -> list[Captioned]:
    """Teacher and prediction of the guidance heads: runs side by side where images and teacher are the same."""
    groups = same_images(runs, "figures/guidance.npz", "teacher", "predicted", same=("images", "teacher"))
    return [_guidance_figure(group) for group in groups]


def _guidance_figure(group: list[tuple[Run, Arrays]]) -> Captioned:
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
    return Captioned(figures.latent_rows(images, teacher, predicted, most), seen, failed)


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


def loss_figure(runs: Sequence[Run]) -> list[Captioned]:
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
    return [Captioned(charts.loss_curves(curves, floors, frozen), seen, f"{wrong}.")]
