"""What is to be known of a layout of data, and which layout a root has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split
from depthjepa.data.kept_folders import kept
from depthjepa.data.layouts import table
from depthjepa.data.listing import sub_folders
from depthjepa.data.samples import Source
from depthjepa.data.shards.place import address_base, is_address
from depthjepa.faults import BadInput, nearest

PACKED = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def path_of(root: str) -> Path:
    """Where a root that is a path lies."""
    return Path(root).expanduser()


def path_name(root: str) -> str:
    """The name of a source that is known by its path."""
    return str(path_of(root))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLayout:
    """What there is to know of a layout beside its name.

    `matches` tells whether a root has this layout (False where nothing is there); it is asked when no earlier row of
    the table matches. `open` and `has_validation` get roots that match, and any root that is there (with `by_name`: any
    at all) where `data.kind` insists on the layout; both raise `BadInput`.
    """

    noun: str  # "RGB-D folder", for messages
    states: str  # what a message says of a root: "is an RGB-D folder"
    matches: Callable[[str], bool]
    open: Callable[[DataConfig, str, Split], Source]
    has_validation: Callable[[DataConfig, str], bool]
    # What a message says of a root that looks like this layout and lacks something, empty for any other: asked where no
    # kind is insisted on and a later row would match.
    nearly: Callable[[str], str] = lambda root: ""
    source_name: Callable[[str], str] = path_name  # the name of the source of a root, without opening it
    by_name: bool = False  # a root is the row's name, or NAME:MORE, instead of a path
    place: Callable[[str], Path | None] = path_of  # where the files of a root lie, or lay; None: at no place of ours
    takes_subsets: bool = False  # whether data.classes and data.images_per_class choose from it
    reads: tuple[str, ...] = ()  # keys of `data` that change how it is read, beside those that are refused elsewhere
    may_have_depth: bool = False
    may_have_labels: bool = False
    may_have_label_maps: bool = False
    pairs: str = ""  # what data.val_prefixes and data.val_list divide, as "RGB-D pairs"; empty: nothing


def layout_of(config: DataConfig, root: str) -> DataLayout:
    """The layout that `data.kind` insists on, or the first one of the table that a root has.

    Raises `BadInput` where there is nothing, and where what is there is not what `data.kind` says.
    """
    layouts, allowed = _layouts(), table.insisted_on(config.kind)
    insisted = layouts[allowed[0]] if len(allowed) == 1 else None
    if insisted is not None and insisted.by_name:
        return insisted
    tried = (name for name, layout in layouts.items() if name in allowed or not layout.by_name)
    found = next((name for name in tried if layouts[name].matches(root)), None)
    if found is None:
        named = [name for name, layout in layouts.items() if layout.by_name and layout.matches(root)]
        if not named or path_of(root).exists():
            raise nothing_at(root)
        found = named[0]
    if config.kind is None:
        for name in itertools.takewhile(lambda name: name != found, layouts):
            if lacking := layouts[name].nearly(root):
                raise BadInput(lacking)
    if insisted is not None and not layouts[found].by_name:
        return insisted  # opening it says what it lacks
    if found not in allowed:
        raise BadInput(f"data.kind={config.kind}, but {path_of(root)} {layouts[found].states}: take data.kind={found}")
    return layouts[found]


def open_root(config: DataConfig, root: str, layout: DataLayout, split: Split) -> Source:
    """Open one root of this layout; raises `BadInput`, also for keys that its layout has no use for."""
    if not layout.takes_subsets:
        _refuse_subset(config, root, layout)
    if not layout.pairs:
        _refuse_division(config, root, layout)
    return layout.open(config, root, split)


def with_depth() -> str:
    """The layouts whose images may have depth, for a message: "an RGB-D folder (...) or ..."; files come first."""
    return _those(lambda layout: layout.may_have_depth)


def with_labels() -> str:
    """The layouts whose images may have labels, as `with_depth`."""
    return _those(lambda layout: layout.may_have_labels)


def with_label_maps() -> str:
    """The layouts whose images may have label maps, as `with_depth`."""
    return _those(lambda layout: layout.may_have_label_maps)


def _those(chosen: Callable[[DataLayout], bool]) -> str:
    names = [name for name, layout in _layouts().items() if chosen(layout)]
    names.sort(key=lambda name: _layouts()[name].by_name)
    return " or ".join(table.LAYOUTS.row(name).about for name in names)


def name_of_root(root: str) -> str:
    """The name that the source of one root bears, without opening it, and whether or not its files are still there."""
    layout = _first_match(root)
    return path_name(root) if layout is None else layout.source_name(root)


def _first_match(root: str) -> DataLayout | None:
    with kept(path_of(root)):
        return next((layout for layout in _layouts().values() if layout.matches(root)), None)


def base_of(root: str) -> str:
    """The folder or address that the names of a root's images are below, whether or not they are still there."""
    if is_address(root):
        return address_base(root)
    return str(path_of(root).parent) if root.endswith(".tar") else name_of_root(root)


def place_of_root(root: str) -> Path | None:
    """Where the files of a root lie, whether or not they are still there; None where no place here is meant."""
    layout = _first_match(root)
    return path_of(root) if layout is None else layout.place(root)


def takes_textures(root: str) -> bool:
    """Whether photographs may cover what a root names: rendered scenes."""
    return any("scene_textures" in layout.reads and layout.matches(root) for layout in _layouts().values())


def layouts_that_read(key: str, roots: Iterable[str]) -> str:
    """The layouts that a key of `data` is for; empty where it is for all, or where one of the roots has such a layout.

    A root of which nothing is known yet might have any.
    """
    readers = {name: layout for name, layout in _layouts().items() if key in layout.reads}
    if not readers:
        return ""
    found = [_first_match(each) for each in roots]
    if None in found or any(layout in readers.values() for layout in found):
        return ""
    return " or ".join(table.LAYOUTS.row(name).about for name in readers)


def _layouts() -> dict[str, DataLayout]:
    return {name: table.LAYOUTS.load(name) for name in table.LAYOUTS.names}


def _refuse_subset(config: DataConfig, root: str, layout: DataLayout) -> None:
    for key in ("classes", "images_per_class"):
        if getattr(config, key) is not None:
            takers = _those(lambda each: each.takes_subsets)
            raise BadInput(f"data.{key} needs {takers}, but data.root={root} {layout.states}")


def _refuse_division(config: DataConfig, root: str, layout: DataLayout) -> None:
    for key in ("val_list", "val_prefixes"):
        if getattr(config, key) is not None:
            takers = [each for each in _layouts().values() if each.pairs]
            pairs, nouns = (" or ".join(getattr(each, what) for each in takers) for what in ("pairs", "noun"))
            raise BadInput(f"data.{key} divides {pairs}, but {layout.source_name(root)} is no {nouns}")


def folder_of_images(folder: str | Path) -> Path:
    """A folder as a path; raises `BadInput` where there is none, with the nearest one."""
    if not str(folder):
        raise BadInput("the folder of images is an empty path")
    place = path_of(str(folder))
    if not place.is_dir():
        raise nothing_at(str(folder))
    return place


def nothing_at(root: str) -> BadInput:
    """What to say of a root where no layout is: a file, or a path that is not there, with the nearest one that is."""
    path = path_of(root)
    if path.exists():
        packed = ": unpack it first" * path.name.lower().endswith(PACKED)
        return BadInput(f"data.root={path} is a file, not a folder{packed}")
    parent = path.parent
    beside = [str(parent / name) for name in sub_folders(parent)] if parent.is_dir() else []
    names = [name for name, layout in _layouts().items() if layout.by_name]
    return BadInput(f"data.root: there is no folder {path}{nearest(str(path), [*beside, *names])}")
