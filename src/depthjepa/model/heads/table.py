"""The heads: one row and one file each.

A row's name is a value of `guidance.head`, of feature guidance or of pixel guidance. Its module has a `HEAD`, a class
of `head.LatentHead` or `head.PixelHead`.
"""

from __future__ import annotations

from depthjepa.kinds import Row, Table

LATENT_HEADS = Table(
    what="head",
    member="HEAD",
    rows=(
        Row("linear", "layer norm and one linear layer on each token by itself", "model.heads.linear"),
        Row("conv", "the paper's small CNN, which reads the whole grid", "model.heads.conv"),
    ),
)
PIXEL_HEADS = Table(
    what="head",
    member="HEAD",
    rows=(
        Row("mlp", "two linear layers on each token by itself", "model.heads.mlp"),
        Row("cnn", "projects tokens to pixels, then two convolutions", "model.heads.cnn"),
        Row("deep-cnn", "five convolutions, most of which enlarge the map", "model.heads.deep_cnn"),
        Row("dpt", "DINOv2's dense prediction module on four depths of a network", "model.heads.dpt"),
    ),
)


def reading_beside(table: Table) -> tuple[str, ...]:
    """Names of the heads that read beside a patch, absent ones included."""
    return tuple(name for name in table.names if table.load(name).reads_beside)
