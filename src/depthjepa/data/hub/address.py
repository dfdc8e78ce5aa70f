"""Which data set of the Hugging Face hub is meant: `hub:OWNER/NAME`, `hub:FOLDER`, and its splits.

The library `datasets` finds, fetches and keeps the files (below `HF_HOME`; `HF_HUB_OFFLINE=1` reads what is kept), and
gives each row from a table on the disk. `:CONFIG` names one of several configurations, `@REVISION` a branch, a tag or a
commit. No code of a data set is run: the library has not done that since its version 4.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthjepa.data.images import Split
from depthjepa.data.layouts.layout import path_of
from depthjepa.data.listing import sub_folders
from depthjepa.faults import BadInput, nearest
from depthjepa.progress import task

START = "hub:"
WRITE = "hub:OWNER/NAME, hub:OWNER/NAME:CONFIG, hub:OWNER/NAME@REVISION or hub:FOLDER"

# What the splits are called, the first one that is there; test data are neither trained on nor judged by.
SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "valid")}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a data set is: on the hub (its ID), or in a folder; and which part of it."""

    place: str
    config: str | None = None
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder; None for an ID of the hub."""
        is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.place)
        return path_of(self.place) if not is_id or path_of(self.place).is_dir() else None


def address_of(root: str) -> Address:
    """What a root of this layout says; raises `BadInput` for one that says nothing of a data set."""
    text = root.removeprefix(START) if root.startswith(START) else ""
    if text and path_of(text).is_dir():
        return Address(text)
    parts = re.fullmatch(r"([^:@]+)(?::([^:@]+))?(?:@([^:@]+))?", text)
    if parts is None:
        raise BadInput(f"data.root={root} names no data set of the hub: write {WRITE}")
    return Address(*parts.groups())


def source_name(root: str) -> str:
    """What a root of this layout is called, without what it may leave out."""
    found = address_of(root)
    config, revision = f":{found.config}" if found.config else "", f"@{found.revision}" if found.revision else ""
    return f"{START}{path_of(found.place)}{config}{revision}"


def splits_of(root: str) -> Mapping[str, Any]:
    """The splits of a data set by their names, each a `datasets.Dataset` whose table lies on the disk.

    Raises `BadInput` where the library is missing, nobody answers, or no data set of that name can be read.
    """
    address = address_of(root)
    if address.folder is None:
        return _fetched(address)
    if not address.folder.is_dir():
        parent = address.folder.parent
        beside = [str(parent / name) for name in sub_folders(parent)] if parent.is_dir() else []
        raise BadInput(
            f"data.root={root}: there is no folder {address.folder}{nearest(str(address.folder), beside)}; a data set "
            f"of the hub is OWNER/NAME"
        )
    if address.revision is not None:
        raise BadInput(
            f"data.root={root}: a folder has no revisions; write {root.removesuffix(f'@{address.revision}')}"
        )
    return _opened(address)


@functools.lru_cache
def _fetched(address: Address) -> Mapping[str, Any]:
    """The same of an ID: a process asks the hub once, and what it reads does not change meanwhile."""
    return _opened(address)


def _opened(address: Address) -> Mapping[str, Any]:
    root = f"{START}{address.place}"
    try:
        import datasets
    except ImportError as fault:
        raise BadInput(f"{root} is read by the library datasets: pip install 'depthjepa[hub]'") from fault
    place = address.place if address.folder is None else str(address.folder.resolve())
    saved = [Path(place) / name for name in ("dataset_dict.json", "state.json")]  # by `save_to_disk`
    try:
        with _waiting(datasets, root):
            if address.folder is not None and address.config is None and any(file.is_file() for file in saved):
                found = datasets.load_from_disk(place, keep_in_memory=False)
            else:
                found = datasets.load_dataset(place, address.config, revision=address.revision, keep_in_memory=False)
    except Exception as fault:  # somebody's files behind a network: of httpx, yaml, pyarrow, fsspec, ...
        raise BadInput(f"data.root={root}: {_reason(fault, address)}") from fault
    splits = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    _refuse_other_revision(splits, address)
    return splits


def _refuse_other_revision(splits: Mapping[str, Any], address: Address) -> None:
    """Raise `BadInput` where the library took what it keeps of a data set for another revision, as it does offline."""
    from huggingface_hub import constants

    if address.revision is None:
        return
    kept = Path(constants.HF_HUB_CACHE) / f"datasets--{address.place.replace('/', '--')}" / "refs" / address.revision
    commit = kept.read_text().strip() if kept.is_file() else address.revision
    folders = {Path(file["filename"]).parent.name for each in splits.values() for file in each.cache_files}
    if others := [name for name in folders if re.fullmatch("[0-9a-f]{40}", name) and name != commit]:
        raise BadInput(
            f"{START}{address.place}: the hub does not answer, and what is kept here is of revision {others[0]}, not "
            f"known to be {address.revision}"
        )


def _reason(fault: Exception, address: Address) -> str:
    """Why the library could not read a data set, in its words."""
    whole = f"{fault} ({fault.__cause__})" if fault.__cause__ is not None else str(fault)
    words = textwrap.shorten(
        whole.partition("Example of usage")[0] or type(fault).__name__, 500, placeholder=" …"
    ).rstrip(".")
    if "BuilderConfig" in whole or whole.startswith("Config name is missing"):
        return f"{words}; a configuration is named behind the place, {START}{address.place}:CONFIG"
    return words if address.folder is not None else f"{words}; nor is there a folder {address.place} here"


@contextlib.contextmanager
def _waiting(datasets: Any, root: str) -> Iterator[None]:
    """Show the library's own bars on a terminal alone; elsewhere say from time to time what is waited for."""
    if sys.stderr.isatty():
        yield
        return
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with task(f"reading {root}"):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def name_of_split(splits: Mapping[str, Any], split: Split) -> str | None:
    """What a data set calls a split of ours; None: it has none."""
    return next((name for name in SPLITS[split] if name in splits), None)
