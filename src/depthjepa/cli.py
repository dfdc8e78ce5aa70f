"""The command line: thin commands over the library. Faults of the user end with status 2 and one message."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from depthjepa import __version__
from depthjepa.arguments import (
    BACKBONE_HELP,
    Checkpoint,
    Convertible,
    Data,
    Force,
    ListsRows,
    Overrides,
    Picture,
    Task,
    is_setting,
    once,
    one_of,
    output_file,
    output_folder,
    said_elsewhere,
)
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.faults import BadInput, RunStopped, nearest
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.preparing import prepare
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
        from depthjepa.config import RunConfig, keys

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


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for runs and report; default demo, or demo-SEED.", callback=output_folder),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order, masks and crops.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Train guided and unguided twins on rendered scenes, probe them, write a report. Offline, in minutes."""
    from depthjepa.commands.demo import demo as run

    run(out or Path("demo" if seed == 0 else f"demo-{seed}"), seed, overrides or [])


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE.", callback=output_folder)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the folder.")] = False,
    lengthen: Annotated[
        bool, typer.Option("--lengthen", help="With --resume and train.steps or train.epochs: make the run longer.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(help="small, base or large: photos and rgbd as recipes for one GPU (the recipe photos-base, …)."),
    ] = None,
) -> None:
    """Pretrain; prints an estimate of time and memory first."""
    from depthjepa.recipe_files import of_size
    from depthjepa.starting import what_to_run
    from depthjepa.training import train as run

    if size is not None:
        recipe = of_size(recipe, size)
    if lengthen and not resume:
        raise BadInput("--lengthen is for a run that is there: give --resume as well")
    config, folder = what_to_run(recipe, overrides or [], out, resume=resume)
    summary = run(config, folder, resume=resume, lengthen=lengthen)
    if summary:
        losses = ", ".join(f"{key} {value:.4f}" for key, value in summary.items() if key.startswith("loss"))
        print(f"{folder}: {summary['steps']} steps, {losses}, {summary['images_per_second']:.0f} images/s")


@app.command()
def teach(
    data: Annotated[str, typer.Option(help=f"Images: {LAYOUTS.listed()}.")],
    teacher: Annotated[str, typer.Option(help=f"A network ({TEACHERS.listed()}); weights by guidance.teacher_*=.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the cache (guidance.cache of a run), or one to go on with.", callback=output_folder
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Compute a teacher's latents of all images once; killed, it goes on where it stopped."""
    from depthjepa.commands.teach import refuse_unread
    from depthjepa.commands.teach import teach as run
    from depthjepa.configuring import build_config

    settings = [f"data.root={data}", f"guidance.teacher={teacher}", "guidance.kind=feature"]
    said_elsewhere(overrides, {"data.root": "--data", "guidance.teacher": "--teacher", "guidance.kind": "the command"})
    refuse_unread([text.partition("=")[0] for text in overrides or []])
    run(build_config({"name": "teach"}, [*settings, *(overrides or [])]), out)


@app.command()
def fit_teacher(
    data: Annotated[str, typer.Option(help="RGB-D pairs: an RGB-D folder, several, or scenes.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the fit: checkpoint and autoencoder in DepthFM's layout.", callback=output_folder),
    ],
    overrides: Overrides = None,
) -> None:
    """Train a compact teacher of DepthFM's kind from RGB-D pairs; killed, it goes on where it stopped."""
    from depthjepa.commands.fit_teacher import fit_teacher as run
    from depthjepa.config import FIT_DEFAULTS
    from depthjepa.configuring import build_fit
    from depthjepa.report.terminal import print_table

    said_elsewhere(overrides, {"data.root": "--data"})
    summary = run(build_fit(FIT_DEFAULTS, [f"data.root={data}", *(overrides or [])]), out)
    print_table(summary)
    print(f"{out}: {summary['bytes'] / 1e6:.2f} MB")


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this recipe; with --keys this section or key: data, optim.lr, study."),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option(
            "--keys", help="Print the keys of the configuration: type, default, meaning, and what recipes set."
        ),
    ] = False,
) -> None:
    """List the shipped recipes with what they cost and score, or print one; or the keys that recipes have."""
    if keys:
        from depthjepa.keys import SHORT, listings
        from depthjepa.report.terminal import print_keys
        from depthjepa.study.keys import study_listing

        print_keys(listings(name, [study_listing()]), SHORT if name is None else None)
        return
    from depthjepa.configuring import load_config
    from depthjepa.recipe_files import families, recipe_names, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    shown = {members[0]: family for family, members in families().items()}
    hidden = {each for members in families().values() for each in members[1:]}
    for each in recipe_names():
        if each not in hidden:
            about = load_config(each).about
            print(f"{shown.get(each, each):28} {about.summary}")
            print(f"{'':28} hardware: {about.hardware}; time: {about.time}; score: {about.score}")


@app.command(cls=ListsRows)
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
    print_table(run(checkpoint, task, data, settings=settings, out=out, say=_note))


@app.command()
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
    print_comparison(run(named, data, asked, out=out, random=random, settings=settings, say=_note))


@app.command()
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
    from depthjepa.checkpoint import load
    from depthjepa.evaluation import probes
    from depthjepa.evaluation.opened import open_with
    from depthjepa.evaluation.probes import table
    from depthjepa.report.terminal import print_table

    if against is not None and Path(against).resolve() == Path(checkpoint).resolve():
        raise BadInput(f"--against {against}: this is the run itself; give its unguided twin")
    tasks = table.of_command("diagnose --gates" if gates else "diagnose")
    twin = "" if against is None else "--against"
    backbone, config, encoder, where = open_with(
        checkpoint, data, overrides or [], "diagnoses", tasks, _note, run_for=twin
    )
    saved = backbone.saved
    subject = probes.Subject(config, encoder, where, backbone, None if against is None else load(against))
    asked = [task for task in tasks.values() if saved is not None or not task.reads_run]
    results = list(probes.run_tasks(asked, subject))
    for number, result in enumerate(results):
        probes.write_probe(result, saved, config.evaluation.which, None if number else out)
        print_table(result.table)


@app.command()
def embed(
    checkpoint: Checkpoint,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Every image below it is embedded.")],
    out: Annotated[
        Path,
        typer.Option(
            help="File: .npz, .parquet or .safetensors; none that is there, unless --force.", callback=output_file
        ),
    ],
    overrides: Overrides = None,
    patches: Annotated[
        bool, typer.Option("--patches", help="Every patch's token [images, patches, width] and the grid of patches.")
    ] = False,
    force: Force = False,
) -> None:
    """Write the mean-pooled embedding of every image below a folder, with the paths; or those of its patches."""
    from depthjepa.commands.embed import embed as run

    paths, embeddings = run(checkpoint, folder, out, patches=patches, force=force, settings=overrides or [], say=_note)
    each = f" of {embeddings.shape[1]} patches each" if patches else ""
    print(f"{out}: {len(paths)} embeddings{each} of width {embeddings.shape[-1]}")


@app.command()
def predict(
    checkpoint: Convertible,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Every image below it gets a depth map.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the depth maps; maps that are there stay, unless --force.", callback=output_folder
        ),
    ],
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Write depth of one's own photographs: 16-bit PNG in millimetres and a coloured picture of each.

    Where depth was never measured in training, the PNG is 0 and the picture grey; 0 is also what lies beyond 65.5 m.
    A photograph is seen whole, in its own proportions; its map has its size.
    """
    from depthjepa.commands.apply import predict as run

    count = run(checkpoint, folder, out, force=force, settings=overrides or [], say=_note)
    print(f"{out}: {count} depth maps")


@app.command()
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


@app.command(cls=ListsRows)
def show(
    what: Picture,
    source: Annotated[
        str, typer.Argument(help="masks, batch: a recipe; the others: a run folder; features: any backbone.")
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


@app.command()
def convert(
    source: Convertible,
    target: Annotated[Path, typer.Argument(help="File or folder to write; it must not exist.")],
    to: Annotated[
        str,
        typer.Option(
            parser=one_of("layout", "depthjepa", "checkpoint", "reference", "hf", "timm", "onnx", "safetensors"),
            metavar="LAYOUT",
            help="reference (.pth.tar), hf, timm (folders), onnx, safetensors (one encoder), depthjepa (a run folder), "
            "checkpoint (its one file).",
        ),
    ],
    overrides: Overrides = None,
    which: Annotated[
        str,
        typer.Option(parser=one_of("encoder", "target", "context"), help="The encoder that hf, timm, … hold."),
    ] = "target",
) -> None:
    """Write a checkpoint in another layout, bit by bit the same; says which encoder it holds."""
    from depthjepa.commands.convert import convert as run

    for line in run(source, target, to, which, overrides or []):  # type: ignore[arg-type]
        print(line)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's name on the hub.")],
    licence: Annotated[
        str, typer.Option(metavar="ID", help="Licence of the weights, as hubs name them: apache-2.0, cc-by-nc-4.0, …")
    ],
    which: Annotated[
        str, typer.Option(parser=one_of("encoder", "target", "context"), help="The encoder to publish.")
    ] = "target",
    private: Annotated[bool, typer.Option("--private", help="Only you see the model, where it is made anew.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write all of it to this folder, and send nothing.", callback=output_folder)
    ] = None,
) -> None:
    """Publish a run's encoder on a hub of models, with a card that the run's own tables fill."""
    from depthjepa.commands.push import push as publish

    for line in publish(run, repo, licence=licence, which=which, private=private, out=out):  # type: ignore[arg-type]
        print(line)


@app.command()
def study(
    study: Annotated[
        str, typer.Argument(help="A shipped study, or a YAML file; `recipes --keys study` prints its keys.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of all arms, such as data.root=FOLDER; an arm's own stay.", callback=once),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; default studies/NAME.", callback=output_folder)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study that is in the folder.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="Copy tables and configurations there, over those that are there.", callback=output_folder),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do every N-th run from the I-th on (from 0): one machine of N.")
    ] = None,
    slurm: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Have N jobs of Slurm do it, and return at once.")
    ] = None,
    slurm_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="What a job gets, by submitit's names: timeout_min=480, gpus_per_node=1."
        ),
    ] = None,
) -> None:
    """Train and probe arms with several seeds; write means and deviations, and what may be claimed."""
    from depthjepa.study.plan import load_study
    from depthjepa.study.results import markdown
    from depthjepa.study.running import run_study
    from depthjepa.study.slurm import submit

    asked = load_study(study)
    asked = replace(asked, settings=(*asked.settings, *(overrides or [])))
    if not (given := re.fullmatch(r"(\d+)/(\d+)", shard or "0/1")):
        raise BadInput(f"--shard {shard!r}: give I/N, such as 0/4 for the first of four machines")
    part, folder = (int(given[1]), int(given[2])), out or Path("studies") / asked.name
    if resume and not (folder / "study.yaml").is_file():
        raise BadInput(f"--resume: there is no study in {folder}; leave --resume out to start one there")
    if slurm is None and slurm_option:
        raise BadInput("--slurm-option is for jobs of Slurm: give --slurm N as well")
    if slurm is not None and shard is not None:
        raise BadInput("--shard and --slurm both divide the study: each job of --slurm N does one part of N")
    if slurm is not None:
        submit(asked, folder, slurm, slurm_option or [], resume=resume, keep=keep)
        return
    content = run_study(asked, folder, resume=resume, keep=keep, shard=part)
    print(f"\n{markdown(content)}", end="")
    if content["failed"]:
        raise RunStopped(f"{len(content['failed'])} of {len(asked.arms) * len(asked.seeds)} runs failed")


@app.command()
def bench(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A shipped recipe or a YAML file (without one: ViT-S/16 at 224 px, batches of 16), and settings.",
            callback=once,
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write the figures as JSON, over those that are there.", callback=output_file)
    ] = None,
    largest: Annotated[
        bool, typer.Option("--largest-batch", help="Find the largest batch that fits into the memory that is free.")
    ] = False,
) -> None:
    """Measure a training step against the matmul rate of this machine, in the same process."""
    from depthjepa.commands.bench import bench as run
    from depthjepa.logbook import to_json, write_whole

    settings = overrides or []
    recipe = settings[0] if settings and "=" not in settings[0] else None
    figures = run(recipe, settings[recipe is not None :], largest=largest)
    if json is not None:
        write_whole(json, to_json(figures))


def _note(text: str) -> None:
    """Say what was found, assumed or left out, beside what a command prints."""
    print(text, file=sys.stderr)
