"""Run folders as the report reads them: what a run says of itself, and the arrays for its pictures.

Every part but `config.yaml` may be missing; a damaged part is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder, read_object

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder says, without its arrays; `name` tells it from the other runs of the page.

    The `stem` of each of `probes` is that of its file, and of the file of its arrays.
    """

    path: Path
    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    probes: list[dict[str, Any]]

    @property
    def stopped(self) -> tuple[int, int | None] | None:
        """The last step, and how many were asked for, of a run that did not reach its end; None of one that did."""
        if self.summary.get("finished", bool(self.summary)) or not self.metrics:
            return None
        asked = self.summary.get("of_steps") or self.config.get("train", {}).get("steps")
        return int(self.metrics[-1].get("step", 0)), asked


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders; a name that occurs twice is told apart by its folder (see `folder_names`)."""
    if not paths:
        raise BadInput("a report needs at least one run folder")
    for path in paths:
        if [other.resolve() for other in paths].count(path.resolve()) > 1:
            raise BadInput(f"{path}: this run is given twice")
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({folder})") if names.count(run.name) > 1 else run
        for run, folder in zip(runs, folder_names(paths), strict=True)
    ]


def folder_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell it from the others: mostly the folder's own name."""
    parts = [path.resolve().parts for path in paths]

    def shortest(own: tuple[str, ...]) -> str:
        ends = (own[-count:] for count in range(1, len(own) + 1))
        return str(Path(*next(end for end in ends if sum(each[-len(end) :] == end for each in parts) == 1)))

    return [shortest(own) for own in parts]


def read_run(path: Path) -> Run:
    """Read one run folder; parts that are missing are empty.

    Raises:
        BadInput: no such folder, no `config.yaml` in it, or a damaged file.
    """
    folder = RunFolder(path)
    config, summary, metrics = folder.config(), folder.summary(), folder.metrics()
    return Run(
        path=path,
        name=str(summary.get("name") or config.get("name") or path.resolve().name),
        config=config,
        environment=read_object(path / "environment.json"),
        summary=summary,
        metrics=metrics,
        probes=[{**read_object(file), "stem": file.stem} for file in sorted((path / "probes").glob("*.json"))],
    )


def read_arrays(run: Run, file: str, *needed: str) -> Arrays | None:
    """Read the arrays of a run folder's `.npz` file; None where the run has no such file.

    Raises:
        BadInput: the file lacks one of the arrays `needed`.
    """
    path = run.path / file
    if not path.is_file():
        return None
    try:
        stored = np.load(path)
    except (OSError, ValueError, zipfile.BadZipFile) as fault:
        raise BadInput(f"{path} is damaged: {str(fault).splitlines()[0]}") from fault
    with stored:
        for name in needed:
            if name not in stored:
                raise BadInput(f"{path}: there is no array {name!r}, only {', '.join(stored)}")
        return dict(stored)


def probe_files(runs: Sequence[Run], pattern: str) -> list[str]:
    """Files of arrays that probes wrote, each once: a run may have one for each set of data."""
    return list({f"probes/{file.name}": None for run in runs for file in sorted((run.path / "probes").glob(pattern))})


def tables_of(run: Run, task: str) -> list[dict[str, Any]]:
    """A run's tables of one task: one for each set of data."""
    return [content for content in run.probes if content.get("task") == task]


def same_images(
    runs: Sequence[Run], file: str, *needed: str, same: Sequence[str] = ("images",)
) -> list[list[tuple[Run, Arrays]]]:
    """Runs that have the file with the arrays `needed`, together where those that are to be the `same` are equal."""
    groups: list[list[tuple[Run, Arrays]]] = []
    for run in runs:
        arrays = read_arrays(run, file, "images", *needed)
        if arrays is None:
            continue
        for group in groups:
            if all(_equal(group[0][1][name], arrays[name]) for name in same):
                group.append((run, arrays))
                break
        else:
            groups.append([(run, arrays)])
    return groups


def stored_alike(runs: Mapping[str, Path], task: str, *same: str) -> dict[str, Arrays]:
    """What a task stored of several runs, by their names; `BadInput` where one has none or `same` arrays differ.

    Where it was not measured on the runs' own data, but on one other data set alone, or by one other protocol, it is
    what was stored of that.
    """
    stored: dict[str, Arrays] = {}
    stem = _stem(runs, task)
    for name, run in runs.items():
        with np.load(run / "probes" / f"{stem}.npz") as arrays:
            stored[name] = dict(arrays)
    first = next(iter(runs))
    for name, arrays in stored.items():
        if not all(_equal(arrays[key], stored[first][key]) for key in same):
            raise BadInput(
                f"{runs[name]} and {runs[first]} were probed on other images: probe them on the same data at one "
                f"data.image_size"
            )
    return stored


def _stem(runs: Mapping[str, Path], task: str) -> str:
    """What the files of a task are called that all runs have: by the task alone, or the only other name."""
    there = [{file.stem for file in (run / "probes").glob(f"{task}*.npz")} for run in runs.values()]
    common = sorted(set.intersection(*there))
    if task in common or len(common) == 1:
        return task if task in common else common[0]
    lacking = next((run for run, names in zip(runs.values(), there, strict=True) if task not in names))
    beside = f" (others there: {', '.join(common)})" if common else ""
    raise BadInput(
        f"{lacking / 'probes' / f'{task}.npz'} is not there{beside}: run `depthjepa probe {lacking} {task}` first"
    )


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays are the same, of numbers or of texts; what is nan in both is."""
    return np.array_equal(first, second, equal_nan=np.issubdtype(first.dtype, np.inexact))


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
