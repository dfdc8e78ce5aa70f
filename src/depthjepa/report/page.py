"""Run folders -> one HTML page that stands alone: pictures first, then tables, then what was run.

Only files are read here; no model is run. Every part of a run folder but `config.yaml` may be missing and
is then left out of the page. Style and pictures are embedded, so that the page can be sent as it is and opens
offline. Runs are compared only on equal ground: maps stand side by side where the images are the same, and
figures share a table where data and protocol are the same. Pictures of what probes stored are made by the rows of
`evaluation.probes.table`, in its order; those of what a run left behind in `report.sections`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from depthjepa.columns import is_number
from depthjepa.drawing import charts
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.probes import table as probes
from depthjepa.faults import BadInput
from depthjepa.logbook import flatten, write_whole
from depthjepa.report.comparison import is_comparison, write_comparison
from depthjepa.report.explorer import explorer
from depthjepa.report.first_screen import KIND, answer, asked_last, first_screen, opening_picture, opening_table
from depthjepa.report.html import document, embed, plain_table, record_table, run_label, section, text
from depthjepa.report.sections import feature_figures, guidance_figures, loss_figure, mask_figures
from depthjepa.report.studies import first_runs, is_study, read_study, studies_page, study_opening, study_sections
from depthjepa.report.tables import READING, Table, merge_tables, table_html
from depthjepa.runs import Run, listed, read_runs


def write_report(runs: list[Path], out: Path) -> None:
    """Write one self-contained HTML page about run folders and folders of studies, in the order given.

    Of a study its claims are shown, its arms, and the runs of its first seed where their folders are kept. The folder
    of a comparison, alone, gives the page of the comparison.

    Raises:
        BadInput: no run, a run that does not exist or has no `config.yaml`, one given twice, a damaged file
            in a run folder, or an `out` that is not an HTML file or cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise BadInput(f"{out}: a report is one HTML file; give a path that ends in .html")
    if len(runs) == 1 and is_comparison(runs[0]):
        write_comparison(runs[0], out)
        return
    studies = {folder: read_study(folder) for folder in runs if is_study(folder)}
    shown = [each for path in runs for each in (first_runs(path, studies[path]) if path in studies else [path])]
    if studies and not shown:
        write_whole(out, studies_page(list(studies.values())))
        return
    for path in shown:
        if path.is_file() or ((path / "config.json").is_file() and not (path / "config.yaml").is_file()):
            raise BadInput(
                f"{path} is not a run folder (a page about other backbones: `depthjepa compare {path} --data DATA "
                f"--out OUT`)"
            )
    write_whole(out, render(read_runs(shown), out, list(studies.values()), runs))


def render(
    runs: Sequence[Run], out: Path, studies: Sequence[Mapping[str, Any]] = (), asked: Sequence[Path] = ()
) -> str:
    """Return the page; `out` and the folders that were `asked` for (default: the runs') stand in the command for it."""
    tables = merge_tables({run.name: run.probes for run in runs})
    names = [run.name for run in runs]
    shown = [*(f"study {content['name']}" for content in studies), *names]
    title = listed(shown if len(shown) <= 4 else [*shown[:3], f"{len(shown) - 3} more"])
    return document(
        title,
        [
            study_opening(studies[0], title, [_soft(summary_sentence(runs))])
            if studies
            else opening(runs, tables, title),
            *study_sections(studies),
            *(_drawn(task.section.title, task.section.draw(runs)) for task in probes.TASKS if task.section is not None),
            _drawn("What the features tell apart", feature_figures(runs)),
            explorer(runs),
            _drawn("What was hidden and what was to be predicted", mask_figures(runs)),
            _drawn("Guidance maps", guidance_figures(runs)),
            _drawn("Losses", loss_figure(runs)),
            section(
                "In numbers",
                [READING * bool(tables), *map(_soft, not_probed(runs)), *(table_html(each, names) for each in tables)],
            ),
            section("What was run", what_was_run(runs, out, asked or [run.path for run in runs]), unfolded=False),
        ],
    )


def opening(runs: Sequence[Run], tables: Sequence[Table], title: str) -> str:
    """The first screen of a page about runs: who is ahead, or what was run where nothing was measured."""
    names, asked = [run.name for run in runs], asked_last(tables)
    found = [] if asked is None else answer(runs, asked)
    ran = summary_sentence(runs)
    picture = opening_picture(runs, "" if asked is None else asked.task)
    return first_screen(
        KIND, title, found or [ran], picture, [opening_table(tables, names), _soft(ran) if found else ""]
    )


def not_probed(runs: Sequence[Run]) -> list[str]:
    """What the page's tables lack, in sentences: runs that were not probed as others were, or not at all."""
    if not any(run.probes for run in runs):
        return ["No run was probed: `depthjepa probe RUN depth` (or knn, linear, …) writes what would stand here."]
    tasks = {str(content.get("task")): None for run in runs for content in run.probes}
    known = probes.tasks()
    found = []
    for task in tasks:
        lacking = [run.name for run in runs if not any(content.get("task") == task for content in run.probes)]
        if lacking:
            title = known[task].title if task in known else task
            found.append(f"{title}: not probed of {listed(lacking)}.")
    return found


def _soft(sentence: str) -> str:
    return f'<p class="soft">{text(sentence)}</p>'


def _drawn(title: str, pictures: Sequence[Captioned]) -> str:
    return section(title, [embed(picture) for picture in pictures])


def summary_sentence(runs: Sequence[Run]) -> str:
    """Say in one sentence what was run; what differs between the runs is left to the tables."""
    patch = _shared(runs, "model.patch_size")
    data = _shared(runs, "data.root") or _shared(runs, "data.kind")
    pixels, steps = _shared(runs, "data.image_size"), _shared(runs, "train.steps")
    epochs, batch = _shared(runs, "train.epochs"), _shared(runs, "train.batch_size")
    meant = "meant for" if any(run.stopped for run in runs) else "for"
    height, width = pixels if isinstance(pixels, list) else (pixels, pixels)
    parts = [
        "One run" if len(runs) == 1 else f"{len(runs)} runs",
        _network(runs),
        f"with patches of {patch} pixels" if patch else "",
        f"on {data}" if data else "",
        f"at {height} × {width} pixels" if pixels else "",
        f"{meant} {steps:,} steps" if is_number(steps) else f"{meant} {epochs:g} epochs" if is_number(epochs) else "",
        f"in batches of {batch}" if batch else "",
    ]
    kinds = {kind: [run.name for run in runs if _kind(run) == kind] for kind in map(_kind, runs)}
    named = "; ".join(f"{listed(names)} ({kind})" for kind, names in kinds.items())
    cut = "".join(
        f" {run.name} was stopped at step {step:,}{f' of {asked:,}' if asked else ''}."
        for run in runs
        if run.stopped
        for step, asked in [run.stopped]
    )
    return " ".join(part for part in parts if part) + f": {named}.{cut}"


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
        return "trained end to end with what depth and labels there are"
    guidance = config.get("guidance.kind", "none")
    terms = ("visible", "pixel", "variance", "covariance", "gaussian")
    method = "I-JEPA" if config.get("loss.latent", 1) else "masked patches without latent loss"
    beside = [f"{guidance} depth guidance"] * (guidance != "none")
    beside += [f"{name} term" for name in terms if config.get(f"loss.{name}")]
    return f"{method} with {listed(beside)}" if beside else f"{method} alone"


def _shared(runs: Sequence[Run], key: str) -> Any:
    values = [flatten(run.config).get(key) for run in runs]
    return values[0] if all(value == values[0] for value in values) else None


def what_was_run(runs: Sequence[Run], out: Path, asked: Sequence[Path]) -> list[str]:
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
    return [*parts, "<h3>Commands</h3>", f"<pre>{text(commands(runs, out, asked))}</pre>", *_configurations(runs)]


def _rows(columns: Mapping[str, Mapping[str, Any]], wanted: Callable[[list[Any]], bool]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = {key: [column.get(key) for column in columns.values()] for key in keys}
    return {
        key: ["–" if value is None else value for value in values] for key, values in rows.items() if wanted(values)
    }


def _cost(summary: Mapping[str, Any]) -> dict[str, str]:
    known: dict[str, str] = {}
    if is_number(steps := summary.get("steps")):
        asked = "" if summary.get("finished", True) else f" of {summary['of_steps']:,}"
        known["steps"] = f"{steps:,}{asked}"
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
        charts.LOSS_TITLES.get(key, key): f"{value:.4f}"
        for key, value in last.items()
        if key.startswith("loss_") and is_number(value)
    }
    floor, reached = last.get("depth_floor"), last.get("loss_depth")
    if is_number(floor) and floor > 0 and is_number(reached):
        known["depth loss of a constant"] = f"{floor:.4f}"
        known["ratio (1: nothing learned)"] = f"{reached / floor:.2f}"
    return known


def commands(runs: Sequence[Run], out: Path, asked: Sequence[Path]) -> str:
    """Return the shell commands that repeat the runs and this page."""
    again = [shlex.join(["depthjepa", "train", str(run.path / "config.yaml"), "--out", "NEW"]) for run in runs]
    page = ["depthjepa", "report", *map(str, asked), "--out", str(out)]
    return "\n".join([*again, shlex.join(page)])


def _configurations(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    return [
        f"<details><summary>Whole configuration of {run_label(run.name, names)}</summary>"
        f"<pre>{text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))}</pre></details>"
        for run in runs
    ]
