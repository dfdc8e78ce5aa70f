"""The layouts of data, in the order in which they are tried: one row and one file each.

A row's name is the value of `data.kind` that insists on it. Its module has a `LAYOUT` (`layout.DataLayout`).
"""

from __future__ import annotations

from depthjepa.kinds import Row, Table, check_choice

LAYOUTS = Table(
    what="data layout",
    member="LAYOUT",
    rows=(
        Row("scenes", "rendered streets (scenes or scenes:SEED)", "data.layouts.scenes"),
        Row("rooms", "rendered rooms (rooms or rooms:SEED)", "data.layouts.rooms"),
        Row(
            "hub",
            "a data set of the Hugging Face hub (hub:OWNER/NAME, or hub:FOLDER with its files)",
            "data.layouts.hub",
        ),
        Row(
            "labelled",
            "a labelled folder (train/rgb, train/labels, val/rgb, val/labels; or rgb, labels; and classes.txt)",
            "data.layouts.labelled",
        ),
        Row(
            "rgbd",
            "an RGB-D folder (train/rgb, train/depth, val/rgb, val/depth; or rgb, depth)",
            "data.layouts.rgbd",
        ),
        Row("class-folder", "a class folder (train/CLASS/*, val/CLASS/*)", "data.layouts.class_folder"),
        Row("shards", "tar shards (a folder of train-*.tar, val-*.tar; or one tar)", "data.layouts.shards"),
        Row("flat", "a flat folder of images", "data.layouts.flat"),
    ),
)

DEFAULT_ROOT = "scenes"  # the layout that needs no files

# Values of `data.kind` that insist on one of several layouts.
GROUPS = {"folder": ("class-folder", "flat")}


def kinds() -> tuple[str, ...]:
    """All values of `data.kind`."""
    return (*LAYOUTS.names, *GROUPS)


def check_kind(kind: str) -> str:
    """The value of `data.kind` itself, for the configuration; refuses others as a `Literal` of all would."""
    return check_choice(kind, kinds())


def insisted_on(kind: str | None) -> tuple[str, ...]:
    """Names of the layouts that a `data.kind` allows; all of them for None."""
    return LAYOUTS.names if kind is None else GROUPS.get(kind, (kind,))
