"""The program: its commands, and how it ends. Faults of the user end with status 2 and one message."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from depthjepa import __version__
from depthjepa.cli import measuring, training, using
from depthjepa.cli.preparing import prepare
from depthjepa.faults import BadInput, RunStopped, nearest
from depthjepa.progress import task
from depthjepa.stopping import Interrupted, interruptions

app = typer.Typer(
    name="depthjepa",
    help="Pretrain vision backbones with I-JEPA and depth, and measure whether geometry got into the features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for part in (training, measuring, using):
    app.add_typer(part.commands)
app.add_typer(prepare, name="prepare")

USAGE: Any = typer.BadParameter.__mro__[1]  # typer keeps the class of all such faults to itself


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that is not UTF-8 is spelt out, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    # A terminal shows what is at work alone; elsewhere the lines tell of all the time that a command takes.
    named = next((word for word in sys.argv[1:] if not word.startswith("-")), "depthjepa")
    telling = contextlib.nullcontext() if sys.stdout.isatty() else task(named)
    try:
        with interruptions() as stopping, stopping.at_once(), telling:
            _refuse_empty(sys.argv[1:])
            status = app(standalone_mode=False, prog_name="depthjepa") or 0
        sys.exit(status)
    except Interrupted as asked:
        print(f"depthjepa: {asked}", file=sys.stderr)
        sys.exit(128 + asked.number)
    except USAGE as fault:
        if fault.format_message():  # empty where help was printed in the place of a command that is missing
            print(f"depthjepa: {_usage(fault)}", file=sys.stderr)
        sys.exit(2)
    except BadInput as fault:
        print(f"depthjepa: {fault}", file=sys.stderr)
        sys.exit(2)
    except PermissionError as fault:
        print(f"depthjepa: {fault.filename}: {fault.strerror}", file=sys.stderr)
        sys.exit(2)
    except RunStopped as fault:
        print(f"depthjepa: {fault}", file=sys.stderr)
        sys.exit(1)
    except OSError as fault:
        from depthjepa.logbook import DISK_FULL

        if fault.errno not in DISK_FULL:
            raise
        print(f"depthjepa: the disk is full: {fault.filename or 'what is printed'} was not written", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would try once more
        sys.exit(1)


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an empty text where a path, a name or a number is expected; an empty path would be the current folder."""
    for before, word in zip(("", *words), words, strict=False):
        if not word or re.fullmatch("--[a-z-]+=", word):
            option = word or (before if before.startswith("--") else "")
            raise BadInput(
                f"{option.rstrip('=') or 'an argument'} is empty: give a value (`{shlex.join(('depthjepa', *words))}`)"
            )


def _usage(fault: Any) -> str:
    """What a command line that does not parse may have meant: an argument, an option, or a key of the configuration."""
    option = getattr(fault, "option_name", None)
    if option is not None:
        from depthjepa.config.run_config import RunConfig, keys

        word = option.lstrip("-").replace("-", "_")
        meant = [f"{key}=" for key in keys(RunConfig) if word in (key, key.partition(".")[2])]
        if meant:
            return f"there is no option {option}: settings are written KEY=VALUE, as {' or '.join(meant)}"
    if (named := re.match("No such command '(.*?)'", fault.format_message())) and fault.ctx:
        commands = fault.ctx.command.list_commands(fault.ctx)
        return f"there is no command {named[1]!r}{nearest(named[1], commands)}: choose from {', '.join(commands)}"
    usage = " ".join(fault.ctx.get_usage().split()) if fault.ctx else ""
    return f"{fault.format_message().replace(': Input should', ' should')} {usage}".strip()


def _print_version(asked: bool) -> bool:
    if asked:
        print(f"depthjepa {__version__}")
        raise typer.Exit()
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options of the program itself; its help is the application's."""
