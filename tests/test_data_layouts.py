"""The table of data layouts: all that is said of them comes from its rows, and a new row is all that a layout needs."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from depthjepa.config.reading import build_config
from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split
from depthjepa.data.layouts import table
from depthjepa.data.layouts.layout import DataLayout
from depthjepa.data.loading import TrainingBatches, has_validation, open_source, source_name
from depthjepa.data.memory import in_memory
from depthjepa.data.samples import Chosen, Sample, Source
from depthjepa.faults import BadInput
from depthjepa.kinds import Row
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import Call

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def write_shards(root: Path) -> Path:
    images = write_flat(root.with_name(f"{root.name}-images"), 3)
    root.mkdir()
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-000.tar", "w") as shard:
            for file in sorted(images.glob("*")):
                shard.add(file, file.name)
    return root


def write_undivided(root: Path) -> Path:
    shutil.copytree(write_pairs(root.with_name(f"{root.name}-divided"), 3, 1) / "train", root)
    return root


def write_training_alone(root: Path) -> Path:
    shutil.rmtree(write_classes(root, 3) / "val")
    return root


ROOTS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "pairs": ("rgbd", lambda root: write_pairs(root, 3, 2)),
    "undivided": ("rgbd", write_undivided),
    "classes": ("class-folder", lambda root: write_classes(root, 3)),
    "training-alone": ("class-folder", write_training_alone),
    "tars": ("shards", write_shards),
    "photographs": ("flat", lambda root: write_flat(root, 3)),
}


def config(root: object, **keys: object) -> DataConfig:
    return DataConfig(**{"root": str(root), "image_size": 16, "scenes_train": 3, "scenes_val": 2, **keys})


# which layout, and what it is called


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_is_opened_alike_whether_its_layout_is_found_or_insisted_on(tmp_path: Path, name: str) -> None:
    kind, write = ROOTS[name]
    found = config(write(tmp_path / name))
    insisted = replace(found, kind=kind)
    for split in ("train", "val"):
        opened = []
        for asked in (found, insisted):
            try:
                source = open_source(asked, split)
                opened.append((type(source), [source.name_of(index) for index in range(len(source))]))
            except BadInput as fault:
                opened.append(str(fault))
        assert opened[0] == opened[1]
        if split == "val":  # `has_validation` promises that it can be opened
            assert has_validation(found) == has_validation(insisted) == (not isinstance(opened[0], str))


@pytest.mark.parametrize("name", [*ROOTS, "scenes", "scenes:07"])
def test_the_name_of_a_source_is_known_without_it(tmp_path: Path, name: str) -> None:
    root = ROOTS[name][1](tmp_path / name) if name in ROOTS else name
    name_when_opened = open_source(config(root), "train").name
    assert source_name(str(root)) == name_when_opened
    shutil.rmtree(tmp_path)
    assert source_name(str(root)) == name_when_opened
    assert source_name(f"{root}*2, scenes") == f"{name_when_opened},scenes:0"


def test_a_kind_can_be_insisted_on_where_several_layouts_would_do(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "classes", 3)
    flat = open_source(config(root, kind="flat"), "train")
    assert flat.classes == () and len(flat) == 6
    assert open_source(config(root, kind="folder"), "train").classes == ("blue", "red")
    assert open_source(config(write_flat(tmp_path / "flat", 3), kind="folder"), "train").classes == ()


def test_a_folder_may_have_the_name_of_a_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_flat(tmp_path / "scenes", 3)
    assert not open_source(config("scenes", kind="folder"), "train").has_depth
    assert open_source(config("scenes"), "train").has_depth


def test_a_typo_in_the_kind_is_told_with_the_nearest_choice() -> None:
    with pytest.raises(BadInput) as fault:
        build_config({}, ["data.kind=sceens"])
    choices = ", ".join(f"{name!r}" for name in table.LAYOUTS.names)
    assert str(fault.value) == (
        f"configuration: data.kind='sceens': should be {choices} or 'folder' (did you mean 'scenes'?)"
    )
    with pytest.raises(BadInput, match=r"data\.kind=3: should be a valid string"):
        build_config({"data": {"kind": 3}})
    assert [build_config({}, [f"data.kind={kind}"]).data.kind for kind in ("null", "folder", "rgbd")] == [
        None,
        "folder",
        "rgbd",
    ]


# what a source knows of itself


def test_what_a_source_knows_is_passed_on(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3, 2)
    cameras = write_pairs(tmp_path / "cameras", 3, 2)
    (cameras / "dataset.json").write_text('{"focal_length": 500}')
    photographs = write_flat(tmp_path / "photographs", 3)

    def known(source: Source) -> tuple[bool, bool, bool]:
        return source.has_depth, source.knows_focal_length, source.keeps_samples

    def opened(root: object) -> Source:
        return open_source(config(root), "train")

    assert known(opened("scenes")) == (True, True, True)
    assert known(opened(pairs)) == (True, False, False)
    assert known(opened(cameras)) == (True, True, False)
    assert known(opened(photographs)) == (False, False, False)
    assert known(opened("scenes,scenes:1")) == (True, True, True)
    assert known(opened(f"scenes,{cameras}")) == (True, True, False)
    assert known(opened(f"{pairs},{cameras}")) == (True, False, False)
    for root in ("scenes", pairs, cameras, photographs):
        assert known(Chosen(opened(root), np.array([1]))) == known(opened(root))
    kept = in_memory(opened(photographs), 1.0, workers=0)
    assert type(kept) is not type(opened(photographs)) and known(kept) == known(opened(photographs))


# a new layout is one row


class Grey:
    """As many grey images as the root says: `grey:N`."""

    classes: tuple[str, ...] = ()
    has_depth = knows_focal_length = keeps_samples = False

    def __init__(self, root: str) -> None:
        self.name = root

    def __len__(self) -> int:
        return int(self.name.partition(":")[2])

    def name_of(self, index: int) -> str:
        return str(index)

    def sample(self, index: int) -> Sample:
        return Sample(torch.full((3, 20, 20), 99, dtype=torch.uint8), None, -1, str(index))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Row:
    """A row of the table whose module has a layout of its own."""

    def open_grey(config: DataConfig, root: str, split: Split) -> Source:
        if not root.startswith("grey:"):
            raise BadInput(f"data.root={root}: write grey:N")
        return Grey(root)

    module = ModuleType("grey")
    module.LAYOUT = DataLayout(
        noun="grey images",
        states="is grey images",
        matches=lambda root: root.startswith("grey:"),
        open=open_grey,
        has_validation=lambda config, root: False,
        source_name=lambda root: root,
        by_name=True,
        takes_subsets=True,
        pairs="grey pairs",
    )
    row = Row("grey", "grey images (grey:N)", "data.layouts.grey")
    monkeypatch.setitem(sys.modules, f"depthjepa.{row.module}", module)
    monkeypatch.setattr(table, "LAYOUTS", replace(table.LAYOUTS, rows=(*table.LAYOUTS.rows, row)))
    return row


def test_a_planted_row_is_opened_insisted_on_and_named_in_messages(planted: Row, tmp_path: Path) -> None:
    for kind in (None, planted.name):
        asked = config("grey:5", kind=kind)
        source = open_source(asked, "train")
        assert (source.name, len(source), has_validation(asked)) == ("grey:5", 5, False)
    assert source_name("grey:5,scenes*2") == "grey:5,scenes:0"
    batches = TrainingBatches(source=source, data=asked, masks=None, grid=(2, 2), seed=0, batch_size=4, steps=2)
    assert all((batch.images * 255 == 99).all() for batch in batches)

    flat = write_flat(tmp_path / "flat", 2)
    for root, keys, message in (
        ("gray", {}, r"there is no folder gray \(did you mean 'grey'\?\)"),
        (flat, {"kind": "gry"}, r"Input should be .*'grey'"),
        (flat, {"kind": "grey"}, "write grey:N"),
        (flat, {"classes": 2}, r"data\.classes needs .* or grey images \(grey:N\), but .*flat is a flat folder"),
        (
            flat,
            {"val_list": "x"},
            "RGB-D pairs or grey pairs, but .*flat is no labelled folder or RGB-D folder or grey",
        ),
    ):
        with pytest.raises((BadInput, ValueError), match=message):
            open_source(config(root, **keys), "train")
    with pytest.raises(BadInput, match=r"did you mean 'grey'\?"):
        build_config({}, ["data.kind=gry"])
    assert planted.about in table.LAYOUTS.listed()


# lists


def test_every_row_is_in_the_help_and_in_the_docs(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    for command in ("probe", "teach"):
        status, shown, _ = call(command, "--help")
        assert status == 0
        assert all(f"{row.name}: {row.about}" in shown for row in table.LAYOUTS.rows)
    listed = re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", DOCS.read_text(), re.MULTILINE)
    assert [name for name, _ in listed] == list(table.LAYOUTS.names)
    for row, (_, text) in zip(table.LAYOUTS.rows, listed, strict=True):
        assert text.replace("`", "").startswith(row.about)
