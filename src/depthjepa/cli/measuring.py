"""Commands that measure encoders and show what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthjepa.cli.arguments import (
    BACKBONE_HELP,
    Checkpoint,
    Data,
    ListsRows,
    Overrides,
    Picture,
    Task,
    is_setting,
    note,
    once,
    output_file,
    output_folder,
)
from depthjepa.data.layouts.table import LAYOUTS

commands = typer.Typer()


@commands.command(cls=ListsRows)
def probe(
    checkpoint: Checkpoint,
    task: Task,
    overrides: Overrides = None,
    data: Data = None,
    fit_on: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Fit a depth readout on other data, or on a cache of a teacher's metres."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the table as JSON, over one that is there.", callback=output_file)
    ] = None,
) -> None:
    """Probe a frozen encoder; its baselines stand beside the figure."""
    from depthjepa.commands.probe import probe as run
    from depthjepa.report.terminal import print_table

    settings = [*(overrides or []), *([] if fit_on is None else [f"evaluation.fit_on={fit_on}"])]
    print_table(run(checkpoint, task, data, settings=settings, out=out, say=note))


@commands.command()
def compare(
    backbones: Annotated[
        list[str],
        typer.Argument(metavar="BACKBONE... [KEY=VALUE]...", help=f"Backbones, and settings: {BACKBONE_HELP}"),
    ],
    data: Annotated[str, typer.Option(help=LAYOUTS.listed())],
    tasks: Annotated[
        str | None, typer.Option(help="Of depth,normals,segment,knn,linear,…; default: what the data allow.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write tables and report.html into this folder.", callback=output_folder)
    ] = None,
    random: Annotated[
        bool, typer.Option("--random/--no-random", help="With each architecture at its initial weights.")
    ] = True,
) -> None:
    """Measure several backbones on the same images and cells: one table, who leads with its interval, a report."""
    from depthjepa.commands.compare import compare as run
    from depthjepa.report.terminal import print_comparison

    settings = once([text for text in backbones if is_setting(text)]) or []
    named = [text for text in backbones if text not in settings]
    asked = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    print_comparison(run(named, data, asked, out=out, random=random, settings=settings, say=note))


@commands.command()
def diagnose(
    checkpoint: Checkpoint,
    overrides: Overrides = None,
    data: Data = None,
    gates: Annotated[
        bool,
        typer.Option("--gates", help="Find out why depth does not decode: floor, overfit, position, inputs, layers."),
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="An unguided twin: did the encoder learn depth, or the head alone?")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the (first) table as JSON, over one that is there.", callback=output_file)
    ] = None,
) -> None:
    """Measure collapse beside the random encoder; of a guided run also whether depth got into the features."""
    from depthjepa.commands.diagnose import diagnose as run
    from depthjepa.report.terminal import print_table

    tables = run(checkpoint, data, settings=overrides or [], against=against, gates=gates, out=out, say=note)
    for table in tables:
        print_table(table)


@commands.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders and folders of studies and comparisons, in the order to show.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write, over one that is there.", callback=output_file)],
) -> None:
    """Write one self-contained HTML page about runs: pictures, losses, tables."""
    from depthjepa.report.page import write_report

    write_report(runs, out)
    print(out)


@commands.command(cls=ListsRows)
def show(
    what: Picture,
    source: Annotated[
        str, typer.Argument(help="masks, batch: a recipe; the others: a run folder; features: backbones beside.")
    ],
    out: Annotated[
        Path, typer.Option(help="Picture to write (.png, .pdf, .svg), over one that is there.", callback=output_file)
    ],
    more: Annotated[list[str] | None, typer.Argument(help="masks, batch: KEY=VALUE; the others: further runs.")] = None,
    photographs: Annotated[bool, typer.Option(help="depth, decode: with the photographs, or the maps alone.")] = True,
) -> None:
    """Draw masks or a training batch of a recipe, or what trained runs hold side by side."""
    from depthjepa.commands.apply import draw

    draw(what, source, more or [], out, photographs=photographs)
    print(out)
