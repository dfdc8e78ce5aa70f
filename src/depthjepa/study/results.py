"""Figures of a study: run folders on disk -> `study.json` and a Markdown table of means ± deviations.

Nothing is computed here but arithmetic on what `train` and the probes wrote. `asked` is the study as plain values
(`plan.Study`): its `arms`, `seeds`, `probes` and what the page says of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from depthjepa.columns import Column, format_column, format_spreads, is_number
from depthjepa.data.order import told_apart
from depthjepa.evaluation.probes.table import baselines
from depthjepa.evaluation.probes.task import Judged
from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder, plain, to_json, write_whole
from depthjepa.study.inference import paired_interval

KEPT_BYTES = 100_000  # of one study, in the repository
CONFIG_BYTES = 5_000  # of these, for a run's configuration
KEPT_COLUMNS = 3  # of each probe at least, however much they are
NAMED_ARMS = 3  # in the name of a baseline's row


@dataclass(slots=True)
class Finished:
    """Figures of a finished run: its own by TASK.KEY, and those of the baselines in its tables."""

    arm: str
    seed: int
    summary: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparable: str = ""  # runs whose baselines are the same networks on the same images


def run_place(folder: Path, arm: str, seed: int) -> Path:
    """The run folder of an arm with a seed."""
    return folder / arm / f"seed-{seed}"


def reason_file(folder: Path, arm: str, seed: int) -> Path:
    """The file that says why a run failed, for as long as it has not been done; every part of a study reads all."""
    return run_place(folder, arm, seed).with_name(f"seed-{seed}.failed")


def finished_runs(asked: Mapping[str, Any], folder: Path) -> list[tuple[str, int]]:
    """The runs (arm, seed) that have all their tables, in the study's order."""
    names = table_names(asked)
    order = [(arm, seed) for seed in asked["seeds"] for arm in asked["arms"]]
    return [run for run in order if is_done(run_place(folder, *run), names)]


def is_done(place: Path, asked: Sequence[str | Judged]) -> bool:
    """Whether a run has its summary and all its probe tables."""
    return RunFolder(place).finished and not missing_tables(place, asked)


def missing_tables(place: Path, asked: Sequence[str | Judged]) -> list[str | Judged]:
    """The probes whose tables a run has not got yet."""
    return [each for each in asked if not (place / "probes" / f"{table_name(each)}.json").is_file()]


def table_name(asked: str | Judged) -> str:
    """What the table of a probe is called: after its task, or by a name of its own."""
    return asked if isinstance(asked, str) else asked.name


def table_names(study: Mapping[str, Any]) -> list[str]:
    """What the tables of a study's probes are called; of a study as plain values."""
    return [*study["probes"], *study.get("judged", {})]  # those of earlier versions had none on other data


def known_steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Steps of each arm, and the seconds of one, as measured once; empty without a measurement."""
    file = folder / "steps.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def write_tables(
    asked: Mapping[str, Any],
    folder: Path,
    claim: Callable[[Mapping[str, Any]], tuple[list[dict[str, Any]], list[str]]],
) -> dict[str, Any]:
    """Write `study.json` and `study.md` from what the runs have on disk; return the former's content.

    `claim` makes of the content what may be claimed, for the former, and its sentences, for the latter. Several
    processes may be at it: what a run has come to in the meantime is in the tables that are written last.
    """
    while True:
        content = _written(asked, folder, claim)
        if finished_runs(asked, folder) == [(run["arm"], run["seed"]) for run in content["runs"]]:
            return content


def _written(
    asked: Mapping[str, Any],
    folder: Path,
    claim: Callable[[Mapping[str, Any]], tuple[list[dict[str, Any]], list[str]]],
) -> dict[str, Any]:
    names = table_names(asked)
    done = finished_runs(asked, folder)
    runs = [read_finished(run_place(folder, arm, seed), arm, seed, names) for arm, seed in done]
    columns = {key: column for run in runs for key, column in run.columns.items()}
    content = plain(
        dict(asked)
        | {
            "steps": known_steps(folder),
            "columns": [{**column, "key": key} for key, column in columns.items()],
            "runs": [
                {"arm": run.arm, "seed": run.seed}
                | {key: run.summary[key] for key in ("steps", "seconds", "images_per_second")}
                | {"figures": run.figures, "baselines": run.baselines}
                for run in runs
            ],
            "means": {arm: _means([run for run in runs if run.arm == arm]) for arm in asked["arms"]},
            "baselines": baseline_rows(runs),
            "failed": [
                {"arm": arm, "seed": seed, "reason": file.read_text()}
                for arm in sorted(asked["arms"])
                for seed in sorted(asked["seeds"])
                if (arm, seed) not in done and (file := reason_file(folder, arm, seed)).is_file()
            ],
        }
    )
    claims, sentences = claim(content)
    found: dict[str, Any] = plain(content | {"claimed": claims, "sentences": sentences})
    write_whole(folder / "study.json", to_json(found))
    write_whole(folder / "study.md", markdown(found))
    return found


def read_finished(place: Path, arm: str, seed: int, tasks: Sequence[str]) -> Finished:
    """Read the figures of a finished run: the last losses, and every number in the rows of its probe tables.

    Keys are TASK.KEY, and TASK@SET.KEY where several data sets have a table each.
    """
    folder = RunFolder(place)
    config, summary = folder.config(), folder.summary()
    run = Finished(arm, seed, summary)
    run.figures |= {key: float(value) for key, value in summary.items() if key.startswith("loss") and is_number(value)}
    protocols = []
    for task in tasks:
        content = folder.probe(task)
        protocols.append((content["data"], content["protocol"]))
        sets = content.get("sets", ())
        names = _short([each["data"] for each in sets])
        tables = {f"{task}@{name}": each for name, each in zip(names, sets, strict=True)} | {task: content}
        for named, each in tables.items():
            run.columns |= {f"{named}.{column['key']}": column for column in each["columns"]}
            for row in each["rows"]:
                row_figures = run.figures if row["name"] == arm else run.baselines.setdefault(row["name"], {})
                row_figures |= {f"{named}.{key}": float(value) for key, value in row.items() if is_number(value)}
    run.comparable = json.dumps([config["model"], protocols])
    return run


def _short(data: Sequence[str]) -> list[str]:
    """The names of data sets in keys: those of their folders, without what separates keys; alike ones are counted."""
    return told_apart([PurePath(each).name.replace(".", "_") for each in data])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, n, and, None of a single value, sample deviation (n - 1) and the ends of the mean's 95 % t interval."""
    if len(values) < 2:
        return {"mean": values[0], "deviation": None, "n": len(values), "low": None, "high": None}
    found = paired_interval(np.asarray(values, dtype=np.float64))
    return {"mean": found.mean, "deviation": found.deviation, "n": found.n, "low": found.low, "high": found.high}


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: spread([row[key] for row in rows if key in row]) for key in keys}


def _means(runs: Sequence[Finished]) -> dict[str, Any]:
    clock = [{key: float(run.summary[key]) for key in ("seconds", "images_per_second")} for run in runs]
    steps = {"steps": runs[0].summary["steps"]} if runs else {}  # a function of the arm's configuration
    return {"runs": len(runs), **steps, **_spreads(clock), "figures": _spreads([run.figures for run in runs])}


def baseline_rows(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Rows of what no run trained: spread over the seeds, the arms of a seed being averaged before.

    Arms whose random encoder is another network, or that were probed on other images, have rows of their own.
    """
    kinds = dict.fromkeys(run.comparable for run in runs)
    rows = []
    for name in baselines():
        for kind in kinds:
            alike = [run for run in runs if run.comparable == kind and name in run.baselines]
            by_seed = [
                {
                    key: each["mean"]
                    for key, each in _spreads([r.baselines[name] for r in alike if r.seed == seed]).items()
                }
                for seed in dict.fromkeys(run.seed for run in alike)
            ]
            if alike:
                arms = list(dict.fromkeys(run.arm for run in alike))
                rows.append({"name": name, "arms": arms, "runs": len(by_seed), "figures": _spreads(by_seed)})
    return rows


def markdown(content: Mapping[str, Any]) -> str:
    """The content of `study.json` as a Markdown table of means ± deviations, one column a measure."""
    untrained, arms = content["baselines"], content["means"]
    several = len({tuple(row["arms"]) for row in untrained}) > 1
    rows = {row["name"] + (f" ({_some(row['arms'])})" if several else ""): row for row in untrained} | arms
    columns = {"": list(rows), "runs": [str(row["runs"]) for row in rows.values()]}
    columns["steps"] = format_column([row.get("steps") for row in rows.values()])
    columns["images/s"] = format_spreads([row.get("images_per_second") for row in rows.values()])
    for column in map(Column.of, content["columns"]):
        head = f"{column.key.partition('.')[0]}: {column.head}"
        columns[head] = format_spreads([row["figures"].get(column.key) for row in rows.values()])
    grid = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    lines = [f"| {' | '.join(line)} |" for line in grid]
    lines.insert(1, "|".join(["", "---", *("--:" for _ in grid[0][1:]), ""]))
    lost = [f"- {each['arm']}, seed {each['seed']} failed: {each['reason']}" for each in content["failed"]]
    said = "\n".join(content["sentences"])
    printed = f"The source paper printed: {content['printed']}" if content.get("printed") else ""
    words = [f"# {content['name']}", content["about"], printed, said, _sentence(content)]
    parts = [*words, "\n".join(lines), "\n".join(lost)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _some(arms: Sequence[str]) -> str:
    """A few names, or the first and how many more: the name of a row is to fit into a table."""
    return ", ".join(arms) if len(arms) <= NAMED_ARMS else f"{arms[0]} and {len(arms) - 1} more"


def _sentence(content: Mapping[str, Any]) -> str:
    count, done = len(content["seeds"]), len(content["runs"])
    length = "each arm trains as long as its configuration says"
    if content["minutes"] is not None:
        measured = (f"{arm} {1e3 * each['seconds_per_step']:.1f} ms" for arm, each in content["steps"].items())
        length = (
            f"{content['minutes']:g} minutes of training for each arm (a step of {', '.join(measured) or 'unknown'})"
        )
    return (
        f"Mean ± deviation (n − 1) over {count} seed{'s' * (count > 1)} ({', '.join(map(str, content['seeds']))}); "
        f"{length}; {content['side_by_side']} at a time; {done} of {count * len(content['arms'])} runs finished."
    )


def refuse_other_kept(asked: Mapping[str, Any], keep: str | Path | None) -> None:
    if keep is None or not Path(keep).exists():
        return
    file = Path(keep) / "study.json"
    if not file.is_file() or json.loads(file.read_text())["name"] != asked["name"]:
        raise BadInput(f"{keep} is there and does not hold study {asked['name']}: choose another --keep")


def keep_results(asked: Mapping[str, Any], folder: Path, keep: Path) -> None:
    """Write what a repository keeps of a study: `study.json`, `study.md`, and `config.yaml` of the first finished run.

    The kept `study.json` has numbers of five digits, each run's depth floor, and the protocol of each probe. What can
    be had from the rest of it is left out: baselines that an earlier run of the same seed has too, figures of a run
    that are neither losses nor columns of the table, means of what is no column, those of an arm with one run, and the
    intervals of means. The arms' settings say what differs from the configuration that is kept.

    Not kept: weights, losses step by step, figures of single images (a bootstrap over images cannot be drawn again),
    pictures, and of what a run cost all but its steps, seconds and speed. Where all this comes to more than 100 kB, the
    columns that are kept are those of claims and the first ones of each probe, as many as fit; the table still has all.

    Raises:
        BadInput: that comes to more than 100 kB as well.
    """
    content = json.loads((folder / "study.json").read_text())
    files = {"study.md": (folder / "study.md").read_text()}
    room = KEPT_BYTES - CONFIG_BYTES - len(files["study.md"].encode())
    files["study.json"] = kept_json(content, folder)
    most = max(map(len, _keys_by_probe(content)), default=0)
    while len(files["study.json"].encode()) > room and (most := most - 1) >= KEPT_COLUMNS:
        files["study.json"] = kept_json(with_few_columns(content, most), folder)
    if content["runs"]:
        first = content["runs"][0]
        files["config.yaml"] = (run_place(folder, first["arm"], first["seed"]) / "config.yaml").read_text()
    if (size := sum(len(text.encode()) for text in files.values())) > KEPT_BYTES:
        raise BadInput(f"study {asked['name']}: {size} bytes to keep, more than {KEPT_BYTES}")
    for name, text in files.items():
        write_whole(keep / name, text)


def _keys_by_probe(content: Mapping[str, Any]) -> list[list[str]]:
    """The columns' keys, those of each probe by themselves."""
    by_probe: dict[str, list[str]] = {}
    for column in content["columns"]:
        by_probe.setdefault(column["key"].partition(".")[0], []).append(column["key"])
    return list(by_probe.values())


def with_few_columns(content: Mapping[str, Any], each: int) -> dict[str, Any]:
    """The content with the first `each` columns of each probe, those that claims are about, and their figures alone."""
    kept = {key for keys in _keys_by_probe(content) for key in keys[:each]}
    kept |= {claim["measure"] for claim in content["claims"]}
    lost = {column["key"] for column in content["columns"]} - kept

    def few(figures: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in figures.items() if key not in lost}

    runs = [
        {
            **run,
            "figures": few(run["figures"]),
            "baselines": {name: few(row) for name, row in run["baselines"].items()},
        }
        for run in content["runs"]
    ]
    return {
        **content,
        "columns": [column for column in content["columns"] if column["key"] in kept],
        "runs": runs,
        "means": {arm: {**mean, "figures": few(mean["figures"])} for arm, mean in content["means"].items()},
        "baselines": [{**row, "figures": few(row["figures"])} for row in content["baselines"]],
    }


def kept_json(content: Mapping[str, Any], folder: Path) -> str:
    """The content of `study.json` as a repository keeps it (see `keep_results`), one line a run, arm or column."""
    places = {(run["arm"], run["seed"]): run_place(folder, run["arm"], run["seed"]) for run in content["runs"]}
    protocols: dict[str, list[str]] = {}
    for task in table_names(content):
        tables = [RunFolder(place).probe(task) for place in places.values()]
        protocols[task] = list(dict.fromkeys(f"{table['data']}: {table['protocol']}" for table in tables))
    floors = {run: RunFolder(place).summary().get("depth_floor") for run, place in places.items()}
    shown = {column["key"] for column in content["columns"]}
    runs = [
        {
            **run,
            "depth_floor": floors[run["arm"], run["seed"]],
            "figures": {key: value for key, value in run["figures"].items() if key in shown or key.startswith("loss")},
            "baselines": _not_before(run, content["runs"][:number]),
        }
        for number, run in enumerate(content["runs"])
    ]
    means = {
        arm: {
            **each,
            "figures": {
                key: _shortened(figures, each["runs"])
                for key, figures in each["figures"].items()
                if key in shown and figures["n"] > 1
            },
        }
        for arm, each in content["means"].items()
    }
    untrained = [
        {**each, "figures": {key: _shortened(mean, each["runs"]) for key, mean in each["figures"].items()}}
        for each in content["baselines"]
    ]
    kept = {**content, "protocols": protocols, "runs": runs, "means": means, "baselines": untrained}
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(_brief(value))}" for key, value in kept.items()) + "\n}\n"


def _shortened(mean: Mapping[str, Any], runs: int) -> dict[str, Any]:
    """A mean without its t interval, which follows from deviation and number; without that where all runs have it."""
    return {key: value for key, value in mean.items() if key not in ("low", "high") and (key, value) != ("n", runs)}


def _not_before(run: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The baselines of a run that no earlier one of its seed has with the same figures."""
    known = [other["baselines"] for other in before if other["seed"] == run["seed"]]
    rows = {name: [_brief(each.get(name)) for each in known] for name in run["baselines"]}
    return {name: row for name, row in run["baselines"].items() if _brief(row) not in rows[name]}


def _brief(value: Any) -> Any:
    """Numbers of five digits, and mappings without what is unknown."""
    if isinstance(value, Mapping):
        return {key: _brief(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_brief(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _lines(value: Any) -> str:
    """JSON with the items of the outermost list or mapping on lines of their own."""
    if isinstance(value, dict) and value:
        return "{\n  " + ",\n  ".join(f"{json.dumps(key)}: {_line(item)}" for key, item in value.items()) + "\n }"
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_line, value)) + "\n ]"
    return json.dumps(value)


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
