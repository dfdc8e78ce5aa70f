"""Commands that train: a run, its twins, its teacher, a study; and what a step costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthjepa.cli.arguments import (
    Overrides,
    once,
    output_file,
    output_folder,
    said_elsewhere,
    shard_of,
)
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.teachers.table import TEACHERS

commands = typer.Typer()


@commands.command()
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


@commands.command()
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
    from depthjepa.config.recipe_files import of_size
    from depthjepa.run.checks import what_to_run
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


@commands.command()
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
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Do the I-th (from 0) of N shares first, then help with the others: one machine of N."
        ),
    ] = None,
) -> None:
    """Compute a teacher's latents of all images once, by one process or many; killed, it goes on where it stopped."""
    from depthjepa.commands.teach import refuse_unread
    from depthjepa.commands.teach import teach as run
    from depthjepa.config.reading import build_config

    settings = [f"data.root={data}", f"guidance.teacher={teacher}", "guidance.kind=feature"]
    said_elsewhere(overrides, {"data.root": "--data", "guidance.teacher": "--teacher", "guidance.kind": "the command"})
    refuse_unread([text.partition("=")[0] for text in overrides or []])
    part = shard_of(shard)
    run(build_config({"name": "teach"}, [*settings, *(overrides or [])]), out, shard=part)


@commands.command()
def fit_teacher(
    data: Annotated[str, typer.Option(help="RGB-D pairs: an RGB-D folder, several, or scenes.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the fit: checkpoint and autoencoder in DepthFM's layout.", callback=output_folder),
    ],
    overrides: Overrides = None,
    judge_on: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Judge it on held-out pairs of other data as well, each by itself: A,B; also once the fit has ended.",
        ),
    ] = None,
) -> None:
    """Train a compact teacher of DepthFM's kind from RGB-D pairs; killed, it goes on where it stopped."""
    from depthjepa.commands.fit_teacher import fit_teacher as run
    from depthjepa.config.reading import build_fit
    from depthjepa.config.run_config import FIT_DEFAULTS
    from depthjepa.report.terminal import print_table

    said_elsewhere(overrides, {"data.root": "--data"})
    others = [] if judge_on is None else [root.strip() for root in judge_on.split(",")]
    summary, *further = run(build_fit(FIT_DEFAULTS, [f"data.root={data}", *(overrides or [])]), out, judge_on=others)
    for each in (summary, *further):
        print_table(each)
    print(f"{out}: {summary['bytes'] / 1e6:.2f} MB")


@commands.command()
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
        from depthjepa.config.keys import SHORT, listings
        from depthjepa.report.terminal import print_keys
        from depthjepa.study.keys import study_listing

        print_keys(listings(name, [study_listing()]), SHORT if name is None else None)
        return
    from depthjepa.config.reading import load_config
    from depthjepa.config.recipe_files import families, recipe_names, recipe_text

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


@commands.command()
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
    from depthjepa.study.plan import load_study, with_settings
    from depthjepa.study.results import markdown
    from depthjepa.study.running import failed_in, run_study

    asked = with_settings(load_study(study), overrides or [])
    part, folder = shard_of(shard), out or Path("studies") / asked.name
    if resume and not (folder / "study.yaml").is_file():
        raise BadInput(f"--resume: there is no study in {folder}; leave --resume out to start one there")
    if slurm is None and slurm_option:
        raise BadInput("--slurm-option is for jobs of Slurm: give --slurm N as well")
    if slurm is not None and shard is not None:
        raise BadInput("--shard and --slurm both divide the study: each job of --slurm N does one part of N")
    if slurm is not None:
        from depthjepa.study.slurm import submit

        submit(asked, folder, slurm, slurm_option or [], resume=resume, keep=keep)
        return
    content = run_study(asked, folder, resume=resume, keep=keep, shard=part)
    print(f"\n{markdown(content)}", end="")
    if failed := failed_in(content, asked, part):
        raise RunStopped(f"{len(failed)} of {len(asked.arms) * len(asked.seeds)} runs failed")


@commands.command()
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
