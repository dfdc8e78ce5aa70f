"""Run folders -> one HTML page that stands alone: pictures first, then tables, then what was run.

Only files are read here; no model is known. Every part of a run folder but `config.yaml` may be missing and
is then left out of the page. Style and pictures are embedded, so that the page can be sent as it is and opens
offline. Runs are compared only on equal ground: maps stand side by side where the images are the same, and
figures share a table where data and protocol are the same.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from depthjepa import figures
from depthjepa.faults import BadInput
from depthjepa.logbook import write_whole
from depthjepa.page import document, embed, plain_table, record_table, run_label, section, text
from depthjepa.runs import Arrays, Run, flatten, read_arrays, read_runs
from depthjepa.study_page import first_runs, is_study, read_study, study_section
from depthjepa.tables import ARROWS, Table, format_column, is_number, merge_tables, table_html

PICTURES = {"depth": 6, "gates": 4, "features": 5, "masks": 3, "guidance": 4}


def write_report(runs: list[Path], out: Path) -> None:
    """Write one self-contained HTML page about run folders and folders of studies, in the order given.

    Of a study its claims are shown, its arms, and the runs of its first seed.

    Raises:
        BadInput: no run, a run that does not exist or has no `config.yaml`, one given twice, a damaged file
            in a run folder, or an `out` that is not an HTML file or cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise BadInput(f"{out}: a report is one HTML file; give a path that ends in .html")
    studies = {folder: read_study(folder) for folder in runs if is_study(folder)}
    shown = [each for path in runs for each in (first_runs(path, studies[path]) if path in studies else [path])]
    write_whole(out, render(read_runs(shown), out, list(studies.values())))


def render(runs: Sequence[Run], out: Path, studies: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the page; `out` appears in the command that writes it again."""
    tables = merge_tables({run.name: run.probes for run in runs})
    names = [run.name for run in runs]
    title = _and(names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"])
    result = headline(tables)
    return document(
        title,
        [
            f'<p class="soft">depthjepa report</p>\n<h1>{text(title)}</h1>',
            f'<p class="lead">{text(summary_sentence(runs))}</p>',
            f'<p class="lead">{text(result)}</p>' if result and not studies else "",
            *(study_section(content) for content in studies),
            section("Depth as a run's own head decodes it", decoded_figures(runs)),
            section("Depth read out of the features", depth_figures(runs)),
            section("Why depth decodes or does not", gate_figures(runs)),
            section("What the features tell apart", feature_figures(runs)),
            section("What the features find alike", neighbour_figures(runs)),
            section("How a classifier learns on frozen features", accuracy_figures(runs)),
            section("What was hidden and what was to be predicted", mask_figures(runs)),
            section("Guidance maps", guidance_figures(runs)),
            section("What each block tells of the teacher's depth", layer_figures(runs)),
            section("Losses", loss_figure(runs)),
            section("In numbers", [READING, *(table_html(table, names) for table in tables)] if tables else []),
            section("What was run", what_was_run(runs, out)),
        ],
    )


READING = (
    '<p class="soft">↑ higher is better, ↓ lower is better; the best figure of a column is bold. Shaded rows '
    "are yardsticks that took no pretraining: a run has learned only as much as it beats them by.</p>"
)


def summary_sentence(runs: Sequence[Run]) -> str:
    """Say in one sentence what was run; what differs between the runs is left to the tables."""
    patch = _shared(runs, "model.patch_size")
    data = _shared(runs, "data.root") or _shared(runs, "data.kind")
    pixels, steps = _shared(runs, "data.image_size"), _shared(runs, "train.steps")
    epochs, batch = _shared(runs, "train.epochs"), _shared(runs, "train.batch_size")
    height, width = pixels if isinstance(pixels, list) else (pixels, pixels)
    parts = [
        "One run" if len(runs) == 1 else f"{len(runs)} runs",
        _network(runs),
        f"with patches of {patch} pixels" if patch else "",
        f"on {data}" if data else "",
        f"at {height} × {width} pixels" if pixels else "",
        f"for {steps:,} steps" if is_number(steps) else f"for {epochs:g} epochs" if is_number(epochs) else "",
        f"in batches of {batch}" if batch else "",
    ]
    kinds = {kind: [run.name for run in runs if _kind(run) == kind] for kind in map(_kind, runs)}
    named = "; ".join(f"{_and(names)} ({kind})" for kind, names in kinds.items())
    return " ".join(part for part in parts if part) + f": {named}."


def _network(runs: Sequence[Run]) -> str:
    """The encoder by its size's name, or by the width and depth that stand in the name's place."""
    width, depth = _shared(runs, "model.width"), _shared(runs, "model.depth")
    if width and depth:
        return f"of a vision transformer {width} wide and {depth} deep"
    own = [_shared([run], f"model.{key}") for run in runs for key in ("width", "depth")]
    size = _shared(runs, "model.size")
    return f"of a {size} vision transformer" if size and not any(own) else ""


def _kind(run: Run) -> str:
    config = flatten(run.config)
    if config.get("train.objective") == "supervised":
        return "trained end to end with what depth and labels there are, a ceiling"
    guidance = config.get("guidance.kind", "none")
    terms = ("visible", "pixel", "variance", "covariance", "gaussian")
    method = "I-JEPA" if config.get("loss.latent", 1) else "masked patches without latent loss"
    beside = [f"{guidance} depth guidance"] * (guidance != "none")
    beside += [f"{name} term" for name in terms if config.get(f"loss.{name}")]
    return f"{method} with {_and(beside)}" if beside else f"{method} alone"


def headline(tables: Sequence[Table]) -> str:
    """Say the first column of the first table in one sentence; empty without tables."""
    if not tables or not tables[0].columns:
        return ""
    table = tables[0]
    key, column = next(iter(table.columns.items()))
    rows = {name: values[key] for name, values in table.rows.items() if is_number(values.get(key))}
    written = dict(zip(rows, format_column(list(rows.values())), strict=True))
    better = column.get("better")
    names = sorted(rows, key=lambda name: rows[name], reverse=better == "higher")
    unit = f" [{column['unit']}]" if column.get("unit") else ""
    hint = f" ({better} is better)" if better in ARROWS else ""
    return f"{column.get('label', key)}{unit}{hint}: {_and([f'{name} {written[name]}' for name in names])}."


def _shared(runs: Sequence[Run], key: str) -> Any:
    values = [flatten(run.config).get(key) for run in runs]
    return values[0] if all(value == values[0] for value in values) else None


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
    files = {f"probes/{file.name}": None for run in runs for file in sorted((run.path / "probes").glob(pattern))}
    return [group for file in files for group in _same_images(runs, file, "truth", "prediction")]


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
    files = {f"probes/{file.name}": None for run in runs for file in sorted((run.path / "probes").glob("gates*.npz"))}
    maps = [
        _gate_figure(run, arrays)
        for file in files
        for run in runs
        if (arrays := read_arrays(run, file, "images", "truth", "names", "maps"))
    ]
    return [*(drawn for run in runs for drawn in _readout_gates(run)), *maps]


def _readout_gates(run: Run) -> list[str]:
    """Bars of the input swap and the curve of the layer sweep."""
    rows = {row["name"]: row["figure"] for content in _tables(run, "gates") for row in content["rows"]}
    swap, layers = (
        {name.removeprefix(begin): figure for name, figure in rows.items() if name.startswith(begin)}
        for begin in ("input swap: ", "layers: ")
    )
    measured = "R² within images of a ridge readout"
    drawn = []
    if swap:
        seen = (
            f"Run {run.name}: depth of the same hidden patches as the same ridge reads it from different inputs (1: "
            "perfect, 0: no more than the mean map). The target encoder sees the whole image, predicted tokens come "
            "from the visible patches alone."
        )
        failed = "the target encoder's bar would be no longer than those of raw patches and of the random encoder."
        drawn.append(embed(figures.named_bars(swap, measured), seen, failed))
    if layers:
        seen = f"Run {run.name}: the same readout from the tokens after each block, all patches seen."
        failed = "the last block would tell less than those before it: what the loss needs is not what depth takes."
        drawn.append(embed(figures.layer_curves({run.name: list(layers.values())}, measured), seen, failed))
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
    for run in runs:
        for file in sorted((run.path / "probes").glob("mlp*.npz")):
            arrays = read_arrays(run, f"probes/{file.name}", "train", "val")
            assert arrays is not None
            curves = groups.setdefault(file.name, {})
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
    return [embed(figures.accuracy_curves(curves), seen, failed) for curves in groups.values()]


def neighbour_figures(runs: Sequence[Run]) -> list[str]:
    """Images and those that each model holds for nearest; one figure for each set of equal images."""
    files = {f"probes/{file.name}": None for run in runs for file in sorted((run.path / "probes").glob("knn*.npz"))}
    seen = (
        "Validation images, and the training images whose pooled features are nearest by cosine, model by model. Green "
        "frames have the image's class, orange ones another."
    )
    failed = "a run would find what the random encoder finds: images of like colours and brightness, of any class."
    needed = ("found", "alike", "random_found", "random_alike")
    drawn = []
    for file in files:
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
                drawn.append(embed(figures.layer_curves(values, label), seen, f"{failed}."))
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
        (f"Masks of {_and([run.name for run in group])}. " if several else "")
        + "The context encoder sees the patches of the second column only; from these and from positions the "
        "predictor must tell the features of each target block. Below stands the share of all patches."
    )
    failed = "targets would overlap their context (it gives the answer away), or the context be almost empty."
    return embed(figures.masks_figure(images, context, targets), seen, failed)


def guidance_figures(runs: Sequence[Run]) -> list[str]:
    """Teacher and prediction of the guidance heads: runs side by side where images and teacher are the same."""
    groups: list[list[tuple[Run, Arrays]]] = []
    for group in _same_images(runs, "figures/guidance.npz", "teacher", "predicted"):
        same: list[list[tuple[Run, Arrays]]] = []
        for run, arrays in group:
            for others in same:
                if np.array_equal(others[0][1]["teacher"], arrays["teacher"], equal_nan=True):
                    others.append((run, arrays))
                    break
            else:
                same.append([(run, arrays)])
        groups += same
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
        f"What guidance heads are to give (teacher{_teacher_words(run)}) and what those of {_and(list(predicted))} "
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
    thawed = {
        run.name: steps
        for run in runs
        if (steps := flatten(run.config).get("init.frozen_steps"))
        and flatten(run.config).get("init.checkpoint")
        and any("loss_depth" in row for row in run.metrics)
    }
    seen = "Strong lines are running means, pale ones the logged values."
    if thawed:
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
    return [embed(figures.loss_curves(curves, floors, thawed), seen, f"{wrong}.")]


def _same_images(runs: Sequence[Run], file: str, *needed: str) -> list[list[tuple[Run, Arrays]]]:
    groups: list[list[tuple[Run, Arrays]]] = []
    for run in runs:
        arrays = read_arrays(run, file, "images", *needed)
        if arrays is None:
            continue
        for group in groups:
            if np.array_equal(group[0][1]["images"], arrays["images"]):
                group.append((run, arrays))
                break
        else:
            groups.append([(run, arrays)])
    return groups


def what_was_run(runs: Sequence[Run], out: Path) -> list[str]:
    """Differences of the configurations, cost, environment, commands and the whole configurations."""
    names = [run.name for run in runs]
    configs = {run.name: flatten(run.config) for run in runs}
    parts = []
    if len(runs) > 1:
        differing = _rows(configs, lambda values: len({json.dumps(v, default=str) for v in values}) > 1)
        differing.pop("name", None)
        parts.append("<h3>Where the configurations differ</h3>")
        parts.append(plain_table(names, differing, names) if differing else "<p>Nowhere: all keys are equal.</p>")
    parts += ["<h3>Cost</h3>", record_table({run.name: _cost(run.summary) for run in runs})]
    parts += ["<h3>Losses at the end</h3>", record_table({run.name: _end(run) for run in runs})]
    environments = {run.name: flatten(run.environment) for run in runs if run.environment}
    if environments:
        rows = _rows(environments, lambda values: any(value is not None for value in values))
        same = all(len(set(map(str, cells))) == 1 for cells in rows.values())
        header = (["all runs"] if len(runs) > 1 else ["value"]) if same else list(environments)
        cells = {key: values[:1] if same else values for key, values in rows.items()}
        parts += ["<h3>Environment</h3>", plain_table(header, cells, names)]
    return [*parts, "<h3>Commands</h3>", f"<pre>{text(commands(runs, out))}</pre>", *_configurations(runs)]


def _rows(columns: Mapping[str, Mapping[str, Any]], wanted: Callable[[list[Any]], bool]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = {key: [column.get(key) for column in columns.values()] for key in keys}
    return {
        key: ["–" if value is None else value for value in values] for key, values in rows.items() if wanted(values)
    }


def _cost(summary: Mapping[str, Any]) -> dict[str, str]:
    known: dict[str, str] = {}
    if is_number(steps := summary.get("steps")):
        known["steps"] = f"{steps:,}"
    if is_number(seconds := summary.get("seconds")):
        known["time"] = f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
    if is_number(speed := summary.get("images_per_second")):
        known["images a second"] = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2f}"
    if is_number(memory := summary.get("peak_memory_bytes")):
        known["peak memory"] = f"{memory / 2**20:,.0f} MiB" if memory < 2**33 else f"{memory / 2**30:,.1f} GiB"
    if is_number(parameters := summary.get("parameters")):
        known["parameters"] = f"{parameters / 1e6:,.2f} million"
    if is_number(images := summary.get("images")):
        known["training images"] = f"{images:,}"
    if is_number(skipped := summary.get("skipped_images")):
        known["unreadable images"] = f"{skipped:,}"
    return known


def _end(run: Run) -> dict[str, str]:
    last = {key: value for row in run.metrics for key, value in row.items()} | run.summary
    known = {
        figures.LOSS_TITLES.get(key, key): f"{value:.4f}"
        for key, value in last.items()
        if key.startswith("loss_") and is_number(value)
    }
    floor, reached = last.get("depth_floor"), last.get("loss_depth")
    if is_number(floor) and floor > 0 and is_number(reached):
        known["depth loss of a constant"] = f"{floor:.4f}"
        known["ratio (1: nothing learned)"] = f"{reached / floor:.2f}"
    return known


def commands(runs: Sequence[Run], out: Path) -> str:
    """Return the shell commands that repeat the runs and this page."""
    again = [shlex.join(["depthjepa", "train", str(run.path / "config.yaml"), "--out", "NEW"]) for run in runs]
    page = ["depthjepa", "report", *(str(run.path) for run in runs), "--out", str(out)]
    return "\n".join([*again, shlex.join(page)])


def _configurations(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    return [
        f"<details><summary>Whole configuration of {run_label(run.name, names)}</summary>"
        f"<pre>{text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))}</pre></details>"
        for run in runs
    ]
