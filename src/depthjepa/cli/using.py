"""Commands that use an encoder: its embeddings, its depth, other layouts of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthjepa.cli.arguments import (
    Checkpoint,
    Convertible,
    Force,
    Overrides,
    note,
    one_of,
    output_file,
    output_folder,
)
from depthjepa.commands.written.table import WRITTEN

commands = typer.Typer()


@commands.command()
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

    paths, embeddings = run(checkpoint, folder, out, patches=patches, force=force, settings=overrides or [], say=note)
    each = f" of {embeddings.shape[1]} patches each" if patches else ""
    print(f"{out}: {len(paths)} embeddings{each} of width {embeddings.shape[-1]}")


@commands.command()
def predict(
    run: Annotated[
        str, typer.Argument(help="A run folder with a depth readout (`probe RUN depth`), or of pixel guidance.")
    ],
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
    from depthjepa.commands.apply import predict as write_maps

    count = write_maps(run, folder, out, force=force, settings=overrides or [], say=note)
    print(f"{out}: {count} depth maps")


@commands.command()
def convert(
    source: Convertible,
    target: Annotated[Path, typer.Argument(help="File or folder to write; it must not exist.")],
    to: Annotated[
        str,
        typer.Option(
            parser=one_of("layout", *WRITTEN.names),
            metavar="LAYOUT",
            help=f"{WRITTEN.listed()}.",
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


@commands.command()
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
