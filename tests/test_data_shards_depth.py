"""Depth and label maps in tar shards: they are what the same files in a folder are, also at an address."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa.data.account import what_is_read
from depthjepa.data.cameras import Calibrated, focal_length_in
from depthjepa.data.config import DataConfig
from depthjepa.data.contents import contents_of, stamps_of
from depthjepa.data.groups import Grouped, group_in
from depthjepa.data.images import Split
from depthjepa.data.layouts import shards as layout
from depthjepa.data.layouts.labelled import labelled_folder
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.layouts.shards import DepthShards, MappedShards, TarShards
from depthjepa.data.loading import TrainingBatches, open_source, open_splits, view_batches
from depthjepa.data.metres import DepthFiles, describe_depth
from depthjepa.data.samples import Segmented, UnreadableImage, segment_classes
from depthjepa.data.shards import index, pieces, remote
from depthjepa.faults import BadInput
from tiny_images import CLASSES, indices, millimetres, picture, save
from tiny_runs import Call, recipe_file

SIZE = (24, 32)  # of photographs in most of these tests
Members = Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]]


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Every test lists what it has written."""
    anew()
    yield
    fs = fsspec.filesystem("memory")
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


def anew() -> None:
    remote.listed.cache_clear()
    index.index_of.cache_clear()


def png(pixels: np.ndarray, tag: int = 1) -> bytes:
    exif, content = Image.Exif(), io.BytesIO()
    if tag > 1:
        exif[0x0112] = tag
    Image.fromarray(pixels).save(content, "PNG", exif=exif)
    return content.getvalue()


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def tiff(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "TIFF")
    return content.getvalue()


def write(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            raw = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            shard.addfile(member, io.BytesIO(raw))
    return path


def sample(key: str, number: int = 0, **more: bytes | str) -> dict[str, bytes | str]:
    """An image with depth; other members by their endings, with _ in the place of dots."""
    found = {"png": png(picture(number, *SIZE)), "depth.png": png(millimetres(number, *SIZE))}
    return {f"{key}.{end}": content for end, content in (found | _ends(more)).items() if content != ""}


def _ends(members: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
    return {name.replace("_", "."): content for name, content in members.items()}


IDS = [f"{scene}_{number:02}" for scene in ("bath", "hall_1", "hall_2") for number in range(4)]


def pairs(root: Path, facts: Any = None, groups: Any = None) -> Path:
    """A labelled folder with depth."""
    for split, first, names in (("train", 0, IDS), ("val", 100, IDS[::2])):
        for number, name in enumerate(names, first):
            save(root / split / "rgb" / f"{name}.png", picture(number, *SIZE))
            save(root / split / "depth" / f"{name}.png", millimetres(number, *SIZE))
            save(root / split / "labels" / f"{name}.png", indices(number, *SIZE))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for name, content in (("dataset.json", facts), ("groups.json", groups)):
        if content is not None:
            (root / name).write_text(json.dumps(content))
    return root


def as_shards(root: Path, out: Path, parts: Sequence[str] = ("depth", "labels"), each: int = 5) -> Path:
    """Shards of a folder's files, as they are, and what lies beside them."""
    for split in ("train", "val"):
        names = sorted(path.stem for path in (root / split / "rgb").iterdir())
        for number in range(0, len(names), each):
            members: list[tuple[str, bytes | str]] = []
            for name in names[number : number + each]:
                for part in (*parts, "rgb"):  # in the order of their names, as WebDataset writes them
                    end = {"rgb": "png", "labels": "label.png"}.get(part, "depth.png")
                    members.append((f"{name}.{end}", (root / split / part / f"{name}.png").read_bytes()))
            write(out / f"{split}-{number:03}.tar", sorted(members))
    for file in root.glob("*.*"):
        shutil.copy(file, out)
    return out


def uploaded(root: Path) -> str:
    fsspec.filesystem("memory").put(str(root), "/bucket", recursive=True)
    return "memory://bucket"


def opened(root: str | Path, split: Split = "train", **keys: Any) -> TarShards:
    source = open_source(DataConfig(root=str(root), **keys), split)
    assert isinstance(source, TarShards)
    return source


def refused(root: str | Path, split: Split = "train", **keys: Any) -> str:
    with pytest.raises(BadInput) as fault:
        opened(root, split, **keys)
    assert "\n" not in str(fault.value)
    return str(fault.value).replace(str(root), "ROOT")


FACTS = {
    "depth_scale": 500,
    "range": [2.0, 7.5],
    "evaluation_crop": {"name": "mine", "shares": [0.25, 0.125, 0.75, 0.875]},
    "focal_length": 40.0,
}
GROUPS = {"groups": [["hall", "hall"], ["", "rest"]], "focal_length_px": [["hall_1", 44.0]]}


@pytest.mark.parametrize("facts", [None, FACTS, FACTS | {"groups": [["", "one place"]]}])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("where", ["disk", "address"])
def test_samples_are_those_of_the_folder(tmp_path: Path, facts: Any, groups: Any, where: str) -> None:
    root = pairs(tmp_path / "pairs", facts, groups)
    out = as_shards(root, tmp_path / "shards")
    place = out if where == "disk" else uploaded(out)
    for split in ("train", "val"):
        source, labelled = opened(place, split), labelled_folder(root, split)
        rgbd = PairedFolder(root, split)
        assert isinstance(source, DepthShards) and len(source) == len(rgbd) and source.has_depth
        assert source.segment_classes == labelled.segment_classes == CLASSES and source.classes == ()
        for name in ("depth_scale", "depth_range", "whole_numbers", "knows_focal_length"):
            assert getattr(source, name) == getattr(rgbd, name), name
        for number in range(len(rgbd)):
            mine, theirs = source.sample(number), rgbd.sample(number)
            assert mine.depth is not None and theirs.depth is not None and mine.label_map is None
            assert torch.equal(mine.image, theirs.image) and torch.equal(mine.depth, theirs.depth)
            assert mine.name == source.name_of(number) and mine.label == -1
            for one, other in zip(source.measured(number), rgbd.measured(number), strict=True):
                assert torch.equal(one, other)
            both, map_alone = source.labelled_sample(number), labelled.labelled_sample(number)
            assert both.label_map is not None and map_alone.label_map is not None and both.depth is not None
            assert torch.equal(both.label_map, map_alone.label_map) and torch.equal(both.depth, theirs.depth)
            assert group_in(source, number) == group_in(rgbd, number) is not None
            assert focal_length_in(source, number) == focal_length_in(rgbd, number)
    (line,) = describe_depth(opened(place))
    assert line == describe_depth(PairedFolder(root, "train"))[0].replace(str(root), str(place))


def test_batches_of_an_address_are_those_of_the_folder(tmp_path: Path) -> None:
    root = pairs(tmp_path / "pairs", FACTS)
    source = opened(uploaded(as_shards(root, tmp_path / "shards")), "val")
    for label_maps in (False, True):
        theirs = labelled_folder(root, "val") if label_maps else PairedFolder(root, "val")
        for one, other in zip(
            *(view_batches(each, (16, 16), batch_size=4, label_maps=label_maps) for each in (source, theirs)),
            strict=True,
        ):
            assert torch.equal(one.images, other.images) and torch.equal(one.depth, other.depth)
            assert not label_maps or torch.equal(one.label_map, other.label_map)


def test_label_maps_alone_and_depth_alone(tmp_path: Path) -> None:
    root = pairs(tmp_path / "pairs")
    maps = opened(as_shards(root, tmp_path / "maps", ("labels",)))
    assert type(maps) is MappedShards and segment_classes(maps) == CLASSES and not maps.has_depth
    assert isinstance(maps, Segmented) and isinstance(maps, Grouped)
    assert not isinstance(maps, DepthFiles) and not isinstance(maps, Calibrated) and describe_depth(maps) == []
    found = maps.labelled_sample(3)
    assert found.depth is None and np.array_equal(found.label_map[0], indices(3, *SIZE))
    depth = opened(as_shards(root, tmp_path / "depth", ("depth",)))
    assert isinstance(depth, DepthFiles) and isinstance(depth, Calibrated) and segment_classes(depth) == ()
    plain = opened(as_shards(root, tmp_path / "plain", ()))
    assert type(plain) is TarShards and not isinstance(plain, (Segmented, Grouped, Calibrated, DepthFiles))

    def told(part: str) -> str:
        config = DataConfig(root=str(tmp_path / part))
        return what_is_read(config, open_splits(config)).partition(": train ")[2]

    assert told("maps") == "12 images, val 6; with label maps of 4 classes"
    assert told("depth") == "12 images, val 6; with depth"
    assert told("plain") == "12 images, val 6"


def test_any_order_of_members_and_any_folders_will_do_on_a_disk(tmp_path: Path) -> None:
    numbers = range(5)
    members = [(f"deep/er/k{n}.rgb.PNG", png(picture(n, *SIZE))) for n in numbers]
    members += [(f"deep/er/k{n}.Depth.PNG", png(millimetres(n, *SIZE))) for n in reversed(numbers)]
    members += [("deep/k0.json", "[]"), ("other.txt", "")]
    source = opened(write(tmp_path / "a.tar", members))
    for number in numbers:
        found = source.sample(number)
        assert np.array_equal(found.image.permute(1, 2, 0), picture(number, *SIZE))
        np.testing.assert_array_equal(found.depth[0], millimetres(number, *SIZE).astype(np.float32) / 1000)
    assert found.name == "a.tar:deep/er/k4.rgb.PNG" and group_in(source, 4) == "deep/er"
    assert dict(source.ignored) == {".json": 1, ".txt": 1}


def test_labels_beside_label_maps_are_called_by_their_indices(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky above\nroad\nbox\nnowhere\n")
    members = {f"k{n}.{end}": content for n in range(3) for end, content in (
        ("cls", f"{n % 2}"), ("label.png", png(indices(n, *SIZE))), ("png", png(picture(n, *SIZE))))}  # fmt: skip
    source = opened(write(tmp_path / "train-0.tar", members))
    assert source.classes == ("0", "1") and source.labels.tolist() == [0, 1, 0]
    assert segment_classes(source) == ("sky above", "road", "box", "nowhere")
    few = opened(tmp_path, classes=("1",))
    assert few.classes == ("1",) and len(few) == 1 and few.sample(0).label == 0
    assert isinstance(few, MappedShards) and np.array_equal(few.labelled_sample(0).label_map[0], indices(1, *SIZE))


def test_facts_of_samples_come_before_those_of_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"focal_length": 40.0}))
    (tmp_path / "groups.json").write_text(json.dumps({"groups": [["k1", "listed"], ["k2", "listed"]]}))
    told = json.dumps({"group": "own", "focal_length": 30, "caption": "a room", "width": None})
    write(
        tmp_path / "train-0.tar",
        sample("k0", json=told) | sample("k1", 1, json='{"group": null, "x": "group"}') | sample("k2", 2),
    )
    write(tmp_path / "train-1.tar", sample("k3", 3, json='{"group": 17}'))
    source = opened(tmp_path)
    assert [group_in(source, number) for number in range(4)] == ["own", "listed", "listed", "17"]
    assert [focal_length_in(source, number) for number in range(4)] == [30.0, 40.0, 40.0, 40.0]
    assert source.knows_focal_length and not source.ignored
    (tmp_path / "dataset.json").unlink()
    assert [focal_length_in(opened(tmp_path), number) for number in range(2)] == [30.0, None]
    assert not opened(tmp_path).knows_focal_length
    all_known = write(tmp_path / "all.tar", sample("k", json='{"focal_length": 30.5}'))
    assert opened(all_known).knows_focal_length
    large = json.dumps({"group": "own", "rows": "x" * 70_000})
    source = opened(write(tmp_path / "large" / "a.tar", sample("k_0", json=large)))
    assert group_in(source, 0) == "k" and source.ignored == {".json": 1}


def test_json_beside_images_alone_is_passed_over_as_ever(tmp_path: Path) -> None:
    members = {"a.png": png(picture(0)), "a.json": '{"group": 0.5, torn', "b.png": png(picture(1)), "b.json": "{}"}
    source = opened(write(tmp_path / "a.tar", members))
    assert type(source) is TarShards and source.ignored == {".json": 2}


@pytest.mark.parametrize(("end", "held"), [("npy", npy), ("tif", tiff), ("tiff", tiff)])
def test_floats_are_read_where_their_unit_is_said(tmp_path: Path, end: str, held: Any) -> None:
    metres = [millimetres(n, *SIZE).astype(np.float32) / 1000 for n in range(3)]
    write(
        tmp_path / "train-0.tar",
        {
            f"k{n}.{e}": c
            for n in range(3)
            for e, c in (("png", png(picture(n, *SIZE))), (f"depth.{end}", held(metres[n])))
        },
    )
    said = refused(tmp_path)
    assert f"ROOT/train-0.tar:k0.depth.{end}: nothing says which unit" in said and "into ROOT/dataset.json" in said
    median = np.median(metres[0][metres[0] > 0])
    assert f"the median of train-0.tar:k0.depth.{end} would be {median:.3g} m in metres" in said
    scaled = opened(tmp_path, depth_scale=2.0)
    np.testing.assert_array_equal(scaled.sample(1).depth[0], metres[1] / 2)
    (tmp_path / "dataset.json").write_text('{"depth_unit": "metres"}')
    source = opened(tmp_path)
    assert isinstance(source, DepthShards) and not source.whole_numbers
    np.testing.assert_array_equal(source.sample(1).depth[0], metres[1])
    assert "1 file units a metre" in describe_depth(source)[0]


def turned(root: Path, tags: Mapping[str, int]) -> Path:
    """A pair of each split whose files have these EXIF orientations."""
    stored = {"rgb": picture(3, *SIZE), "depth": millimetres(3, *SIZE), "labels": indices(3, *SIZE)}
    for split in ("train", "val"):
        for part, pixels in stored.items():
            (root / split / part).mkdir(parents=True)
            (root / split / part / "k.png").write_bytes(png(pixels, tags.get(part, 1)))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"rgb": 6, "depth": 6, "labels": 6}, None),
        ({"rgb": 3, "depth": 4, "labels": 2}, None),
        ({"rgb": 8}, "stored"),
        ({"rgb": 3}, "upright"),
        ({"depth": 3, "labels": 3}, "stored"),
    ],
)
def test_rotations_are_those_of_a_folder(tmp_path: Path, tags: dict[str, int], said: Any) -> None:
    root = turned(tmp_path / "pairs", tags)
    source = opened(as_shards(root, tmp_path / "shards"), depth_orientation=said)
    theirs = labelled_folder(root, "train", depth_orientation=said).labelled_sample(0)
    assert isinstance(source, DepthShards)
    found = source.labelled_sample(0)
    assert torch.equal(found.image, theirs.image) and torch.equal(found.depth, theirs.depth)
    assert torch.equal(found.label_map, theirs.label_map)


@pytest.mark.parametrize("tagged", ["rgb", "depth", "labels"])
def test_a_rotation_of_one_member_alone_is_unclear(tmp_path: Path, tagged: str) -> None:
    """On a disk that is found when the shards are opened, at an address, and of label maps, when they are read."""
    out = as_shards(turned(tmp_path / "pairs", {tagged: 6}), tmp_path / "shards")
    if tagged != "labels":
        said = refused(out)
    far = opened(uploaded(out))
    assert isinstance(far, DepthShards)
    with pytest.raises(BadInput) as fault:
        far.labelled_sample(0) if tagged == "labels" else far.sample(0)
    found = str(fault.value).replace("memory://bucket", "ROOT")
    assert tagged == "labels" or found == said
    names = {"rgb": "k.png", "depth": "k.depth.png", "labels": "k.label.png"}
    assert f"ROOT/train-000.tar:{names[tagged]} is to be turned (EXIF orientation 6) and ROOT/train-000.tar:k." in found
    assert "data.depth_orientation=stored" in found


def test_a_source_travels_to_workers(tmp_path: Path) -> None:
    place = uploaded(as_shards(pairs(tmp_path / "pairs", FACTS, GROUPS), tmp_path / "shards"))
    source = opened(place)
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, DepthShards) and torch.equal(again.sample(7).depth, source.sample(7).depth)
    assert group_in(again, 7) == group_in(source, 7)
    data = DataConfig(image_size=16, workers=0)
    given = {"source": source, "masks": None, "grid": (2, 2), "seed": 0, "batch_size": 6, "steps": 3}
    batches, others = (
        list(TrainingBatches(data=each, **given)) for each in (data, DataConfig(image_size=16, workers=2))
    )
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.depth, other.depth)


OTHER = png(millimetres(0, *SIZE)[:-2])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (sample("a") | {"b.png": png(picture(1))}, "ROOT/train-0.tar:b.png has no depth, but other images have: give"),
        (
            sample("a", depth_png="", label_png=png(indices(0, *SIZE))) | {"b.png": png(picture(1))},
            "ROOT/train-0.tar:b.png has no label map, but other images have: give all of them a .label.png, or none",
        ),
        (
            sample("a") | {"b.depth.png": png(millimetres(0))},
            "ROOT/train-0.tar: b.depth.png is a depth file without an image (.jpg",
        ),
        (
            sample("a") | {"b.label.png": png(indices(0))},
            "ROOT/train-0.tar: b.label.png is a label map without an image",
        ),
        ({"b.depth.png": png(millimetres(0))}, "ROOT/train-0.tar: b.depth.png is a depth file without an image"),
        (
            sample("a") | {"a.depth.npy": npy(np.ones(SIZE))},
            "ROOT/train-0.tar: a.depth.png and a.depth.npy are two depth files of one sample",
        ),
        (
            [*sample("a").items(), ("a.label.png", png(indices(0))), ("a.label.PNG", png(indices(0)))],
            "ROOT/train-0.tar: a.label.png and a.label.PNG are two label maps of one sample",
        ),
        (
            [*sample("a").items(), ("a.json", '{"group": "x"}'), ("a.json", '{"group": "y"}')],
            "ROOT/train-0.tar: a.json and a.json are two files of facts of one sample",
        ),
        (sample("a") | {"a.mask.png": png(picture(0))}, "a.png and a.mask.png are two images of one sample"),
        (
            {"a.png": png(picture(0)), "a.depth.exr": b"?"},
            "ROOT/train-0.tar: a.depth.exr is EXR, which is read from folders alone: in a shard depth is one of "
            "KEY.depth.png, KEY.depth.tif, KEY.depth.tiff, KEY.depth.npy",
        ),
        (
            sample("a") | sample("b", depth_png="", depth_npy=npy(np.ones(SIZE))),
            "ROOT/train-0.tar:a.depth.png and ROOT/train-0.tar:b.depth.npy are of several formats: keep depth to one",
        ),
        (sample("a", json='{"group": ""}'), "ROOT/train-0.tar: a.json: group='': should be the name of a scene"),
        (sample("a", json='{"group": [1]}'), "ROOT/train-0.tar: a.json: group=[1]: should be a valid string"),
        (sample("a", json='{"focal_length": -1}'), "ROOT/train-0.tar: a.json: focal_length=-1: should be greater"),
        (sample("a", json='{"focal_length": "long"}'), "ROOT/train-0.tar: a.json: focal_length='long': should be"),
        (sample("a", json='{"group": "x"'), "ROOT/train-0.tar: a.json: it is not JSON"),
        (
            sample("a", label_png=png(indices(0, *SIZE))),
            "ROOT holds label maps (.label.png), but no classes.txt: write the names of the classes there",
        ),
    ],
)
def test_what_the_layout_forbids_is_named(tmp_path: Path, members: Members, message: str) -> None:
    write(tmp_path / "train-0.tar", members)
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            sample("a", depth_png=OTHER),
            "ROOT/a.tar:a.depth.png is 22 x 32 pixels (height x width), its photograph a.tar:",
        ),
        (sample("a", depth_png=png(indices(0, *SIZE))), "ROOT/a.tar:a.depth.png is PNG of mode L; depth must be"),
        (sample("a", label_png=OTHER), "ROOT/a.tar:a.label.png is grey of 16 bits; a label map is a PNG of 8-bit"),
        (
            sample("a", label_png=png(indices(0, *SIZE) + 2)),
            "pixels, but ROOT/classes.txt names 4 classes: a label map holds their indices, 0 to 3, and 255 for void",
        ),
        (sample("a", label_png=png(indices(0, *SIZE)[:-1])), "ROOT/a.tar:a.label.png is 23 x 32 pixels"),
    ],
)
def test_members_that_do_not_fit_are_named(tmp_path: Path, members: Members, message: str) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    source = opened(write(tmp_path / "a.tar", members))
    assert isinstance(source, MappedShards)
    with pytest.raises(BadInput) as fault:
        source.labelled_sample(0) if "label" in message else source.sample(0)
    assert message in str(fault.value).replace(str(tmp_path), "ROOT")


@pytest.mark.parametrize("end", ["depth.png", "label.png", "png"])
def test_a_damaged_member_is_named_each_time_alike(tmp_path: Path, end: str) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    members = sample("a", label_png=png(indices(0, *SIZE)))
    source = opened(write(tmp_path / "a.tar", members | {f"a.{end}": b"torn"}))
    assert isinstance(source, MappedShards)
    for _ in range(2):
        with pytest.raises(UnreadableImage) as fault:
            source.labelled_sample(0)
        assert str(fault.value) == f"{tmp_path}/a.tar:a.{end}: it is no image, or of an unknown format"
    if end == "label.png":
        assert source.sample(0).depth is not None


@pytest.mark.parametrize(("part", "what"), [("depth", "depth"), ("labels", "label map")])
@pytest.mark.parametrize("lacking", ["train", "val"])
def test_both_splits_have_maps_or_neither(tmp_path: Path, part: str, what: str, lacking: str) -> None:
    root = pairs(tmp_path / "pairs")
    for split in ("train", "val"):
        found = as_shards(root, tmp_path / split, (part,) if split != lacking else ())
        for tar in found.glob("*.tar"):
            if not tar.name.startswith(split):
                tar.unlink()
        shutil.copytree(found, tmp_path / "shards", dirs_exist_ok=True)
    having = {"train": "val", "val": "train"}[lacking]
    said = refused(tmp_path / "shards", "val")
    assert said == (
        f"ROOT/{lacking}-000.tar:bath_00.png has no {what}, but the images of {having}-000.tar have: both train and "
        f"val need it, or neither"
    )


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is fetched of shards: name, first byte, length. Pieces are small."""
    found: list[tuple[str, int, int]] = []
    fetch = remote.Address._fetched

    def noting(self: remote.Address, shard: Any, first: int, length: int) -> bytes:
        found.append((shard.name, first, length))
        return fetch(self, shard, first, length)

    monkeypatch.setattr(remote.Address, "_fetched", noting)
    for module in (pieces, remote, layout):
        monkeypatch.setattr(module, "BYTES", 8192)
    return found


def test_a_piece_holds_all_members_of_its_samples(tmp_path: Path, fetches: list[tuple[str, int, int]]) -> None:
    root = pairs(tmp_path / "pairs")
    source = opened(uploaded(as_shards(root, tmp_path / "shards")))
    assert isinstance(source, DepthShards)
    fetches.clear()
    for number in range(len(source)):
        source.labelled_sample(number)
    of_sample = source.pieces()
    assert of_sample is not None and len(fetches) == of_sample.max() + 1 > 3, "each piece once, nothing beside it"
    assert len(fetches) < len(source)


def test_a_few_samples_are_fetched_with_all_of_theirs(
    tmp_path: Path, fetches: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pieces, remote, layout):
        monkeypatch.setattr(module, "BYTES", 1 << 20)
    members = {name: content for n in range(40) for name, content in sample(f"k{n:02}", n, label_png="").items()}
    members |= {f"k{n:02}.label.png": png(indices(n, *SIZE)) for n in range(40)}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "classes.txt").write_text("\n".join(CLASSES))
    write(tmp_path / "shards" / "train-0.tar", sorted(members.items()))
    source = opened(uploaded(tmp_path / "shards"))
    few = source.for_few(np.array([20]))
    assert isinstance(few, DepthShards) and few is not source
    fetches.clear()
    found = few.labelled_sample(20)
    assert np.array_equal(found.label_map[0], indices(20, *SIZE)) and found.depth is not None
    ((_, _, length),) = fetches
    whole = sum(len(content) for name, content in members.items() if name.startswith("k20"))
    assert whole < length < whole + 3 * 1024, "a header lies before each member"
    assert source.for_few(np.arange(40)) is source


def test_members_that_lie_far_apart_are_refused_at_an_address_alone(
    tmp_path: Path, fetches: list[tuple[str, int, int]]
) -> None:
    members = [(f"k{n:02}.png", png(picture(n, *SIZE))) for n in range(12)]
    members += [(f"k{n:02}.depth.png", png(millimetres(n, *SIZE))) for n in range(12)]
    write(tmp_path / "shards" / "train-0.tar", members)
    assert opened(tmp_path / "shards").sample(11).depth is not None
    said = refused(uploaded(tmp_path / "shards"))
    assert said.startswith("ROOT/train-0.tar:k") and "MB from other members of its sample" in said
    assert "write the shards anew in the order of their names, or copy them to a disk" in said


def test_a_kept_index_knows_depth_label_maps_and_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    monkeypatch.setattr(index, "KEPT_FROM", 1)
    root = pairs(tmp_path / "pairs", FACTS)
    out = as_shards(root, tmp_path / "shards")
    write(out / "train-005.tar", sample("x", 5, label_png=png(indices(5, *SIZE)), json='{"group": "é"}'))
    before = opened(out)
    (kept,) = (cache_folder / "indexes").glob("*.npz")
    scanned: list[str] = []
    scan = index.scanned
    monkeypatch.setattr(index, "scanned", lambda file, name: scanned.append(name) or scan(file, name))
    anew()
    after = opened(out)
    assert not scanned and isinstance(before, DepthShards) and isinstance(after, DepthShards)
    assert len(after) == 8 and np.array_equal(after.stamps(), before.stamps())
    for number in range(len(after)):
        one, other = after.labelled_sample(number), before.labelled_sample(number)
        assert torch.equal(one.depth, other.depth) and torch.equal(one.label_map, other.label_map)
        assert group_in(after, number) == group_in(before, number)
    assert group_in(after, 5) == "é"

    with np.load(kept) as stored:  # as an earlier version wrote it
        old = {name: stored[name] for name in ("names", "places", "labels")}
        told = json.loads(str(stored["about"])) | {"format": 1}
    np.savez(kept, about=np.array(json.dumps(told)), **old)
    anew()
    assert opened(out).has_depth and scanned, "it says nothing of depth, so the shards are looked through"


def test_images_alone_and_depth_may_stand_in_one_index(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain" / "a.tar", {"a.png": png(picture(0))})
    deep = write(tmp_path / "deep" / "b.tar", sample("b", json='{"group": "g"}'))
    known = {}
    for path in (plain, deep):
        place = layout.Folder(path)
        known |= index.indexed(place, place.shards())
    again = index._read(index.to_bytes(known))
    first, second = (again[shard].samples for shard in known)
    assert first.maps is None and second.maps is not None and second.maps.groups.tolist() == [b"g"]
    assert second.maps.depth_ends.tolist() == [b"depth.png"] and not second.maps.have_label_maps


@pytest.mark.parametrize("end", ["depth.npy", "depth.png", "label.png"])
def test_a_changed_map_is_a_changed_sample(tmp_path: Path, end: str) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "dataset.json").write_text('{"depth_unit": "metres"}')

    def content(number: int) -> bytes:
        if end == "label.png":
            return png(indices(number, *SIZE))
        return npy(millimetres(number, *SIZE) / 1000) if end == "depth.npy" else png(millimetres(number, *SIZE))

    def written(changed: int) -> TarShards:
        members = [
            (f"k{n}.{each}", held)
            for n in range(4)
            for each, held in (("png", png(picture(n, *SIZE))), (end, content(changed if n == 2 else n)))
        ]
        write(tmp_path / "train-0.tar", members)
        anew()
        return opened(tmp_path)

    before, after = written(2), written(9)
    differing = (stamps_of(before) != stamps_of(after)).any(axis=1)
    assert differing.tolist() == [False, False, True, False]
    assert contents_of({"train": before})["train"] != contents_of({"train": after})["train"]
    if end != "label.png":
        (tmp_path / "dataset.json").write_text('{"depth_unit": "centimetres"}')
        assert (stamps_of(opened(tmp_path)) != stamps_of(after)).any(axis=1).all()


def test_stamps_of_images_alone_are_as_they_were(tmp_path: Path) -> None:
    image = png(picture(0))
    source = opened(write(tmp_path / "a.tar", {"a.png": image, "a.cls": "0"}))
    assert source.stamps().tolist() == [[len(image), 0]]


def test_a_run_learns_from_depth_in_shards_and_is_judged_by_both_maps(tmp_path: Path, call: Call) -> None:
    root = as_shards(pairs(tmp_path / "pairs", {"focal_length": 40.0}), tmp_path / "shards")
    guided = ("guidance.kind=feature", "guidance.teacher=depth", "train.steps=2", "evaluation.pictures=1")
    recipe = recipe_file(tmp_path / "tiny.yaml", root, *guided)
    status, said, errors = call("train", recipe, "--out", tmp_path / "run")
    assert status == 0, errors
    assert f"depth of {root}: " in said and "with depth; with label maps of 4 classes" in said
    for task, quick in (("depth", ()), ("segment", ("evaluation.segment_steps=2", "evaluation.pictures=1"))):
        status, said, errors = call("probe", tmp_path / "run", task, "--data", root, *quick)
        assert status == 0, errors
        found = json.loads((tmp_path / "run" / "probes" / f"{task}.json").read_text())
        assert "6 validation images" in found["protocol"], found["protocol"]
    status, _, errors = call(
        "probe", tmp_path / "run", "depth", "--data", as_shards(tmp_path / "pairs", tmp_path / "x", ())
    )
    assert status == 2 and "needs depth, and" in errors and "tar shards" in errors
