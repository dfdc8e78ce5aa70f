"""Arguments and options of the command line, with what is refused while they are parsed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from depthjepa.backbones.table import BACKBONES
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.faults import BadInput, nearest

# The last family is what can be converted and gone on with, and comes first; networks of other libraries are measured.
*OTHERS, OURS = (row.about for row in BACKBONES.rows)
BACKBONE_HELP = f"{'; '.join((OURS, *OTHERS))}."
Checkpoint = Annotated[str, typer.Argument(metavar="BACKBONE", help=BACKBONE_HELP)]
Convertible = Annotated[str, typer.Argument(metavar="BACKBONE", help=f"{OURS}.")]


def is_setting(word: str) -> bool:
    """Whether a word among backbones is a setting, KEY=VALUE: a path has no dotted word before an equals sign."""
    return re.match(r"[a-z_]+(\.[a-z_]+)+=|seed=", word) is not None


def once(settings: list[str] | None) -> list[str] | None:
    """Refuse a key that is given twice."""
    if settings:
        from depthjepa.config.reading import refuse_repeated

        refuse_repeated(settings)
    return settings


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as KEY=VALUE, for example train.batch_size=32.", callback=once),
]
Data = Annotated[
    str | None,
    typer.Option(help=f"{LAYOUTS.listed()}; default: the run's own."),
]

# What a command can make again is written over: reports, pictures, tables. What is made of photographs is not.
Force = Annotated[bool, typer.Option("--force", help="Write over files that are there; else they are refused.")]


def said_elsewhere(overrides: list[str] | None, places: Mapping[str, str]) -> None:
    """Refuse settings that the command line says already: `places` has for a key what says it."""
    for text in overrides or []:
        if (key := text.partition("=")[0]) in places:
            raise BadInput(f"{key} is given by {places[key]}, not by a setting as well")


def shard_of(text: str | None) -> tuple[int, int]:
    """The number of a machine, from 0, and how many there are, of --shard I/N; one alone without it."""
    if not (given := re.fullmatch(r"(\d+)/(\d+)", text or "0/1")):
        raise BadInput(f"--shard {text!r}: give I/N, such as 0/4 for the first of four machines")
    return int(given[1]), int(given[2])


def one_of(what: str, *choices: str) -> Callable[[str], str]:
    """Parse a word that is one of some choices, with the nearest one for any other; `what` they are, in messages."""

    def parse(word: str) -> str:
        if word not in choices:
            raise BadInput(f"there is no {what} {word!r}{nearest(word, choices)}: choose from {', '.join(choices)}")
        return word

    return parse


def _tasks() -> dict[str, str]:
    from depthjepa.evaluation.probes import table

    return {name: task.about for name, task in table.of_command("probe").items()}


def _pictures() -> dict[str, str]:
    from depthjepa.evaluation.probes import table

    own = {
        "masks": "of a recipe",
        "batch": "of a recipe, as training gets it",
        "features": "tokens of patches of runs and other backbones",
    }
    drawn = {name: task.picture for name, task in table.pictured().items()}
    return own | {name: picture.about for name, picture in drawn.items() if picture is not None}


ROWS = {"task": _tasks, "what": _pictures}


class ListsRows(TyperCommand):
    """A command whose help lists the rows of a table; tables load torch, and are read when that help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Read the tables, then write help as ever."""
        for each in self.params:
            if isinstance(each, TyperArgument) and each.name in ROWS:
                each.help = "; ".join(f"{name}: {about}" for name, about in ROWS[each.name]().items())
        super().format_help(ctx, formatter)


def _row_of(what: str, read: Callable[[], Mapping[str, str]]) -> Callable[[str], str]:
    return lambda word: one_of(what, *read())(word)


def output_file(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before any work."""
    return _writable(path, folder=False)


def output_folder(path: Path | None) -> Path | None:
    """Refuse a folder that nothing can be written in, before any work."""
    return _writable(path, folder=True)


def _writable(path: Path | None, *, folder: bool) -> Path | None:
    if path is not None:
        from depthjepa.logbook import refuse_unwritable

        refuse_unwritable(path, folder=folder)
    return path


Task = Annotated[str, typer.Argument(parser=_row_of("probe", _tasks), metavar="TASK")]
Picture = Annotated[str, typer.Argument(parser=_row_of("picture", _pictures), metavar="WHAT")]


def note(text: str) -> None:
    """Say what was found, assumed or left out, beside what a command prints."""
    print(text, file=sys.stderr)
