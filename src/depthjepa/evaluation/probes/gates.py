"""Gates: cheap tests that tell why depth does not decode, as one table; see `evaluation.gates`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from depthjepa.columns import Column
from depthjepa.drawing import charts, figures
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.gates import (
    HEAD_WIDTH,
    IMAGES,
    TITLES,
    Kind,
    few,
    overfit_gates,
    position_gate,
    readout_gates,
)
from depthjepa.evaluation.gathering import whole_views_text
from depthjepa.evaluation.probes.task import DEPTH, OwnTask, Picture, Probe, Section, Subject
from depthjepa.faults import BadInput
from depthjepa.logbook import RunFolder
from depthjepa.model.vit import VisionTransformer
from depthjepa.runs import Arrays, Run, listed, probe_files, read_arrays, tables_of

PICTURES = 4  # rows of a figure


def run(subject: Subject) -> Iterable[Probe]:
    """Run all gates of a checkpoint on RGB-D data: a table with verdicts in words, and the overfitted maps."""
    config, saved, train, val, device = subject.config, subject.saved, subject.train, subject.val, subject.device
    encoder = subject.encoder
    assert saved is not None and isinstance(encoder, VisionTransformer)
    found, words = readout_gates(config, saved, encoder, train, val, device)
    found.insert(1, position_gate(config, encoder, device))
    protocol = (
        f"readouts: ridges of the log depth of 2 x 2 cells a patch, R² within images, {whole_views_text(train, val)}"
    )
    maps: dict[str, np.ndarray] = {}
    if config.evaluation.gate_steps:
        batch = next(iter(few(config, "train", IMAGES)())).to(device)
        fitted, maps = overfit_gates(config, saved, batch, device)
        found += fitted
        protocol += (
            f"; overfit: R² within images, pixel by pixel, of {len(batch.images)} training images after at most "
            f"{config.evaluation.gate_steps} steps, heads {HEAD_WIDTH} wide (dpt "
            f"half of that), whole views, masks drawn anew each step and for judging"
        )
    content = TASK.table(train.source, protocol, [gate.row() for gate in found])
    failed = [f"{gate.name}: {gate.figure:.3f}, wanted {gate.wanted:.3f}" for gate in found if gate.passed is False]
    yield Probe(content | {"verdict": [*words, *(f"failed: {each}" for each in failed)]}, maps)


def figures_of(content: Mapping[str, Any], kind: Kind) -> dict[str, float]:
    """The figures of all gates of one kind in a stored table, by what each is of.

    Rows that do not say their kind begin their name with its title.
    """
    found = {}
    for row in content["rows"]:
        title, _, of = row["name"].partition(": ")
        if row.get("gate", "") == kind or ("gate" not in row and title == TITLES[kind]):
            found[str(row.get("of", of))] = row["figure"]
    return found


def panels(tables: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Input swap and layer sweep of the tables of several runs; None where they hold neither."""
    kinds: tuple[Kind, Kind] = ("swap", "layer")
    swap, layers = (
        {run: found for run, content in tables.items() if (found := figures_of(content, kind))} for kind in kinds
    )
    return charts.gate_panels(swap, {run: list(found.values()) for run, found in layers.items()})


def gate_figures(runs: Sequence[Run]) -> list[Captioned]:
    """What `diagnose --gates` found of each run: input swap, layer sweep, and what each head makes of a few images."""
    maps = [
        _maps(run, arrays)
        for file in probe_files(runs, f"{TASK.name}*.npz")
        for run in runs
        if (arrays := read_arrays(run, file, "images", "truth", "names", "maps"))
    ]
    return [*_readouts(runs), *maps]


def _readouts(runs: Sequence[Run]) -> list[Captioned]:
    """Bars of the input swap and curves of the layer sweep, the runs of each set of data together."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for content in tables_of(run, TASK.name):
            found.setdefault(content["data"], {})[run.name] = content
    failed = (
        "the target encoder's bar would be no longer than those of raw patches and of the random encoder, or the last "
        "block would tell less than those before it: what the loss needs is not what depth takes."
    )
    drawn = []
    for data, tables in found.items():
        seen = (
            f"{listed([f'Run {run}' for run in tables])} on {data}. Bars: depth of the same hidden patches as the same "
            "ridge reads it from different inputs (1: perfect, 0: no more than the mean map). The target encoder sees "
            "the whole image, predicted tokens come from the visible patches alone. Lines: the same readout from the "
            "tokens after each block, all patches seen."
        )
        figure = panels(tables)
        if figure is not None:
            drawn.append(Captioned(figure, seen, failed))
    return drawn


def _maps(run: Run, arrays: Arrays) -> Captioned:
    images, truth = (arrays[key][:PICTURES] for key in ("images", "truth"))
    maps = arrays["maps"][:, :PICTURES]
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
    return Captioned(figures.depth_rows(images, truth, dict(zip(names, maps, strict=True))), seen, failed)


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """Input swap and layer sweep of `diagnose RUN --gates`, the runs together; there are no photographs."""
    tables: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        try:
            tables[name] = RunFolder(run).probe(TASK.name)
        except FileNotFoundError as fault:
            raise BadInput(f"{fault.filename} is not there: run `depthjepa diagnose {run} --gates` first") from fault
    figure = panels(tables)
    if figure is None:
        raise BadInput(
            f"the gates of {', '.join(map(str, runs.values()))} hold neither an input swap nor a layer sweep"
        )
    return figure


TASK = OwnTask(
    name="gates",
    title="Gates: why depth decodes or does not",
    about="why depth decodes or does not: floor, position, inputs, layers, overfit",
    columns=(
        Column("figure", "figure", "what the gate measures: R² within images where its name does not say otherwise"),
        Column("wanted", "wanted", "the least figure with which the gate passes; a dash where it stands beside others"),
        Column("passed", "passed", "whether it is reached; a gate that fails names a cause"),
    ),
    reads_run=True,
    needs=(DEPTH,),
    reads=("gate_steps",),
    section=Section("Why depth decodes or does not", gate_figures),
    picture=Picture("input swap and layer sweep of `diagnose RUN --gates`", show),
    command="diagnose --gates",
    studied=False,
    run=run,
)
