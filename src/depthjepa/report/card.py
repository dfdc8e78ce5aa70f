"""A model card, filled from what a run's own folder says: data, steps, figures beside their baselines, limits.

The form is that of https://huggingface.co/docs/hub/model-cards: YAML between `---`, then Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence

from depthjepa.evaluation.probes import table as probes
from depthjepa.report.page import summary_sentence
from depthjepa.report.tables import Table, merge_tables
from depthjepa.runs import Run

TAGS = ("i-jepa", "self-supervised", "vision-transformer", "geometry")
MOST = 5  # columns of a table; the run's own tables, which go with the weights, have all


def model_card(run: Run, repo: str, licence: str, which: str) -> str:
    """The card of a run's encoder (`which`: target or context) that is published as `repo` under a licence."""
    # What reads more of a run than its encoder says nothing of what is published.
    of_encoder = {name for name, task in probes.of_command("probe").items() if not task.reads_run}
    tables = [table for table in merge_tables({run.name: run.probes}) if table.task in of_encoder]
    parts = [
        f"# {repo.rpartition('/')[2]}",
        f"The {which} encoder of a run of depthjepa: I-JEPA pretraining with depth. {summary_sentence([run])}",
        f"## How to use it\n\n{_use(repo)}",
        f"## What it was trained on\n\n{_training(run)}",
        f"## Figures\n\n{_figures(tables, run.name)}",
        f"## Limits\n\n{_limits(run, tables)}",
        f"## Licence\n\n{licence}, of the weights. The images that it was trained on have licences of their own.",
    ]
    return f"---\n{_facts(run, repo, licence, tables)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _facts(run: Run, repo: str, licence: str, tables: Sequence[Table]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-feature-extraction",
            dataset_type=table.data,
            dataset_name=table.data,
            metric_type=f"{table.task}.{column.key}",
            metric_name=f"{column.label} ({table.task})",
            metric_value=table.figures(column.key)[run.name],
        )
        for table in tables
        for column in [*table.columns.values()][:1]
        if run.name in table.figures(column.key)
    ]
    data = ModelCardData(
        license=licence,
        library_name="depthjepa",
        pipeline_tag="image-feature-extraction",
        tags=list(TAGS),
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _use(repo: str) -> str:
    return (
        "```python\nimport depthjepa, torch\n"
        f'encoder = depthjepa.load_encoder("{repo}")\n'
        "tokens = encoder(encoder.normalise(images))    # images [b, 3, h, w] in [0, 1] -> tokens [b, n, d]\n```\n\n"
        f'`transformers.AutoModel.from_pretrained("{repo}")` loads it as well. A run starts from it with '
        f"`init.checkpoint={repo}`."
    )


def _training(run: Run) -> str:
    summary, teacher = run.summary, run.summary.get("teacher") or {}
    lines = [
        f"- {summary['data'].removeprefix('data: ')}" if summary.get("data") else "",
        f"- {summary['steps']:,} steps, {summary['epochs']:.3g} passes over {summary['images']:,} images"
        if {"steps", "epochs", "images"} <= summary.keys()
        else "",
        f"- guided by {teacher['name']}" if teacher.get("name") else "- without guidance",
        "- every setting: `config.yaml`, which `depthjepa train` takes",
    ]
    return "\n".join(line for line in lines if line)


def _figures(tables: Sequence[Table], name: str) -> str:
    if not tables:
        return "None: the run was not probed (`depthjepa probe RUN depth`, `linear`, …)."
    return "\n\n".join(_table(table, name) for table in tables)


def _table(table: Table, name: str) -> str:
    shown = [column for column in table.columns.values() if name in table.figures(column.key)][:MOST]
    heads = [" ".join(filter(None, (each.label, f"[{each.unit}]" if each.unit else "", each.arrow))) for each in shown]
    written = [table.written(each.key) for each in shown]
    lines = [["", *heads], ["---", *("--:" for _ in shown)]]
    rows = [[row.name, *(column[number] for column in written)] for number, row in enumerate(table.rows)]
    lines += [row for row in rows if set(row[1:]) != {"–"}]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table.task} on {table.data} ({table.protocol}):\n\n{grid}"


def _limits(run: Run, tables: Sequence[Table]) -> str:
    size = run.config.get("data", {}).get("image_size")
    pixels = "x".join(map(str, size)) if isinstance(size, list) else f"{size}x{size}"
    lines = [
        f"- Trained on images of {pixels} px (height x width); at other sizes its positions are stretched.",
        "- One run: the figures have no interval, and say nothing of other data.",
        *_not_above(run, tables),
    ]
    if run.stopped:
        lines.append(f"- The run was stopped at step {run.stopped[0]:,}.")
    return "\n".join(lines)


def _not_above(run: Run, tables: Sequence[Table]) -> list[str]:
    """Where a yardstick that took no pretraining is as good or better."""
    lines = []
    for table in tables:
        column = next(iter(table.columns.values()))
        figures, sign = table.figures(column.key), -1 if column.better == "lower" else 1
        ahead = (
            [
                row.name
                for row in table.rows
                if row.kind == "baseline"
                and row.name in figures
                and sign * figures[row.name] >= sign * figures[run.name]
            ]
            if run.name in figures and column.better
            else []
        )
        if ahead:
            lines.append(f"- In {column.label} ({table.task}, {table.data}) it is not better than {', '.join(ahead)}.")
    return lines
