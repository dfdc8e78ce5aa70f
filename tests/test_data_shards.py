"""Tar shards: what is in them, which faults are named; images kept in memory change no batch."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa.data.config import DataConfig
from depthjepa.data.images import decode
from depthjepa.data.layouts.shards import TarShards
from depthjepa.data.loading import TrainingBatches, has_validation, open_source, view_batches
from depthjepa.data.memory import Kept, in_memory
from depthjepa.data.order import Mixture
from depthjepa.data.samples import Batch, Sample, Source, UnreadableImage
from depthjepa.distributed import Ranks
from depthjepa.faults import BadInput
from depthjepa.masks import MaskConfig

Members = dict[str, bytes | str]


def picture(number: int, size: tuple[int, int] = (20, 24), suffix: str = "png") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG" if suffix == "jpg" else suffix)
    return content.getvalue()


def write(path: Path, members: Members | Sequence[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items() if isinstance(members, dict) else members:
            raw = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            shard.addfile(member, io.BytesIO(raw))
    return path


def labelled(labels: Sequence[int], first: int = 0) -> Members:
    """Samples `0000`, `0001`, ... of the given labels, as WebDataset's writer lays them out."""
    members: Members = {}
    for number, label in enumerate(labels, first):
        members |= {f"{number:04d}.cls": str(label), f"{number:04d}.json": "{}", f"{number:04d}.png": picture(number)}
    return members


def split_shards(root: Path) -> Path:
    write(root / "train-000.tar", labelled([1, 0, 2, 1]))
    write(root / "train-001.tar", labelled([0, 1, 2, 0], first=4))
    write(root / "val-000.tar", labelled([2, 1, 1], first=20))
    return root


def opened(root: Path, split: str = "train", **keys: object) -> TarShards:
    source = open_source(DataConfig(root=str(root), **keys), split)
    assert isinstance(source, TarShards)
    return source


def names(source: Source) -> list[str]:
    return [source.sample(index).name for index in range(len(source))]


def labels(source: Source) -> list[int]:
    return [source.sample(index).label for index in range(len(source))]


# what is in shards


def test_samples_come_in_the_order_of_shards_and_members(tmp_path: Path) -> None:
    source = opened(split_shards(tmp_path))
    assert len(source) == 8 and labels(source) == [1, 0, 2, 1, 0, 1, 2, 0] == source.labels.tolist()
    assert source.classes == ("0", "1", "2") and not source.has_depth and isinstance(source, Source)
    assert source.sample(0).name == "train-000.tar:0000.png" and source.sample(7).name == "train-001.tar:0007.png"
    assert opened(tmp_path, "val").labels.tolist() == [2, 1, 1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_an_image_is_what_the_same_file_in_a_folder_is(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(picture(3, suffix=suffix))
    write(tmp_path / "all.tar", {f"deep/er/a.{suffix.upper()}": picture(3, suffix=suffix), "b.txt": "no image"})
    sample = opened(tmp_path / "all.tar").sample(0)
    expected = decode(tmp_path / f"a.{suffix}")
    assert torch.equal(sample.image, expected) and sample.image.stride() == expected.stride()
    assert (sample.label, sample.depth) == (-1, None)


def test_long_names_and_unusual_members_are_read(tmp_path: Path) -> None:
    long = "n" * 150 + "/" + "é" * 90
    members = {
        f"{long}.png": picture(0),
        f"{long}.cls": " 1\n",
        "._a.png": "of a Mac",
        "x/.hidden.jpg": "?",
        "README": "",
    }
    source = opened(write(tmp_path / "a.tar", members))
    assert names(source) == [f"a.tar:{long}.png"] and source.labels.tolist() == [1]
    assert torch.equal(source.sample(0).image, opened(write(tmp_path / "b.tar", {"a.png": picture(0)})).sample(0).image)


def test_one_key_in_two_folders_or_shards_is_two_samples(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"x/1.png": picture(0), "y/1.png": picture(1)})
    write(tmp_path / "b.tar", {"x/1.png": picture(2)})
    assert names(opened(tmp_path)) == ["a.tar:x/1.png", "a.tar:y/1.png", "b.tar:x/1.png"]


@pytest.mark.parametrize(
    ("files", "train", "val"),
    [
        (["train-0.tar", "val-0.tar"], ["train-0.tar"], ["val-0.tar"]),
        (["train/0.tar", "train/1.tar", "val/0.tar"], ["train/0.tar", "train/1.tar"], ["val/0.tar"]),
        (["photos-train-0.tar", "photos-validation-0.tar"], ["photos-train-0.tar"], ["photos-validation-0.tar"]),
        (["a.tar", "trained.tar"], ["a.tar", "trained.tar"], ["a.tar", "trained.tar"]),
        (["train-0.tar"], ["train-0.tar"], []),
        (["training-0.tar", "valid-0.tar", "test-0.tar"], ["training-0.tar"], ["valid-0.tar"]),
    ],
)
def test_splits_are_told_by_words_of_the_name_or_the_folder(
    tmp_path: Path, files: list[str], train: list[str], val: list[str]
) -> None:
    for file in files:
        write(tmp_path / file, {"a.png": picture(0)})
    assert [name.partition(":")[0] for name in names(opened(tmp_path))] == train
    config = DataConfig(root=str(tmp_path))
    assert has_validation(config) == bool(val)
    if val:
        assert [name.partition(":")[0] for name in names(opened(tmp_path, "val"))] == val
    else:
        with pytest.raises(BadInput, match="holds no tar shards of val"):
            open_source(config, "val")


def test_class_names_and_subsets(tmp_path: Path) -> None:
    split_shards(tmp_path)
    (tmp_path / "classes.txt").write_text("bird a bird\ncat\ndog\n")
    assert opened(tmp_path).classes == opened(tmp_path, "val").classes == ("bird", "cat", "dog")
    few = opened(tmp_path, classes=2, images_per_class=2)
    assert few.classes == ("bird", "cat") and labels(few) == [1, 0, 1, 0]
    assert [name[-8:] for name in names(few)] == ["0000.png", "0001.png", "0003.png", "0004.png"]
    swapped = opened(tmp_path, classes=("dog", "bird"))
    assert swapped.classes == ("dog", "bird") and labels(swapped) == [1, 0, 1, 0, 1]
    assert labels(opened(tmp_path, "val", classes=("cat",), images_per_class=1)) == [0, 0]
    assert labels(opened(tmp_path, images_per_class=1)) == [1, 0, 2]


def test_a_changed_shard_is_indexed_anew(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", labelled([0]))
    assert len(opened(tmp_path)) == 1
    write(tmp_path / "a.tar", labelled([0] * 20))
    assert len(opened(tmp_path)) == 20


# faults


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": "text"}, r"train-0\.tar holds no images"),
        ({"a.png": picture(0), "a.jpg": picture(1)}, r"train-0\.tar: a\.png and a\.jpg are two images of one sample"),
        ([("a.png", picture(0)), ("a.png", picture(1))], r"a\.png and a\.png are two images"),
        ({"a.png": picture(0), "a.mask.png": picture(1)}, r"a\.png and a\.mask\.png are two images"),
        ([("a.png", picture(0)), ("a.cls", "1"), ("a.cls", "2")], r"a\.cls and a\.cls are two labels"),
        ({"a.png": picture(0), "a.cls": "dog"}, r"train-0\.tar: a\.cls holds 'dog', not the index of a class"),
        ({"a.png": picture(0), "a.cls": "-1"}, "a.cls holds '-1'"),
        ({"a.png": picture(0), "a.cls": b"\xff\x00"}, "not the index of a class"),
        ({"a.png": picture(0), "b.cls": "0"}, r"train-0\.tar: b\.cls is a label without an image"),
        ({"a.png": picture(0), "a.cls": "0", "b.png": picture(1)}, r"train-0\.tar:b\.png has no label"),
        ({"a.png": picture(0), "a.cls": "3"}, r"train-0\.tar:a\.png is of class 3, but .* names 3 classes \(0 to 2\)"),
    ],
)
def test_what_the_layout_forbids_is_named_with_shard_and_member(tmp_path: Path, members: Members, message: str) -> None:
    (tmp_path / "classes.txt").write_text("bird\ncat\ndog\n")
    write(tmp_path / "train-0.tar", members)
    with pytest.raises(BadInput, match=message):
        opened(tmp_path)


def test_a_shard_cut_short_anywhere_is_a_fault(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tar", labelled([0, 1, 2])).read_bytes()
    end = max(place for place in range(0, len(whole), 512) if any(whole[place : place + 512])) + 512
    for length in {0, 100, 512, 700, 1024, end // 2, end // 2 // 512 * 512, end - 512, end - 1, end, end + 100}:
        path = tmp_path / f"cut{length}.tar"
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=rf"cut{length}\.tar is (no uncompressed tar|cut short or damaged)"):
            opened(path)
    (tmp_path / "two.tar").write_bytes(whole + whole)
    with pytest.raises(BadInput, match=r"cut short or damaged after 0002\.png"):
        opened(tmp_path / "two.tar")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": 4}, "data.classes=4, but there are 3 classes in the shards of"),
        ({"classes": ("5",)}, r"no class '5' in the shards of .* there are 3: 0, 1, 2"),
        ({"kind": "folder"}, "holds tar shards: take data.kind=shards"),
        ({"kind": "rgbd"}, "has no train/rgb/"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path: Path, keys: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        opened(split_shards(tmp_path), **keys)


def test_labels_must_be_there_and_agree_where_they_are_needed(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", labelled([0, 2]))
    write(tmp_path / "val-0.tar", labelled([2, 1]))
    with pytest.raises(BadInput, match=r"val-0\.tar:0001\.png has class 1, which no image of train has"):
        opened(tmp_path, "val")
    with pytest.raises(BadInput, match="class '1' has no images in the train shards"):
        opened(tmp_path, classes=2)
    write(tmp_path / "val-0.tar", {"a.png": picture(0)})
    with pytest.raises(BadInput, match=r"val-0\.tar:a\.png has no label"):
        opened(tmp_path, "val")
    write(tmp_path / "train-0.tar", {"a.png": picture(0)})
    write(tmp_path / "val-0.tar", labelled([2, 1]))
    assert labels(opened(tmp_path, "val")) == [-1, -1] and opened(tmp_path, "val").classes == ()
    for keys in ({"classes": 1}, {"images_per_class": 1}):
        with pytest.raises(BadInput, match=f"data.{next(iter(keys))} needs labels"):
            opened(tmp_path, **keys)
    for text in ("bird\nbird\n", "bird\n\ncat\n"):
        (tmp_path / "classes.txt").write_text(text)
        write(tmp_path / "train-0.tar", labelled([0]))
        with pytest.raises(BadInput, match=r"classes\.txt must name every class once"):
            opened(tmp_path)


def test_a_damaged_image_is_unreadable_under_the_same_name_each_time(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"a.png": picture(0)[:60], "b.png": "text", "c.png": picture(1)})
    source = opened(tmp_path)
    for index, name in enumerate(("a", "b")):
        texts = set()
        for _ in range(3):
            with pytest.raises(UnreadableImage, match=rf"a\.tar:{name}\.png: .") as fault:
                source.sample(index)
            texts.add(str(fault.value))
        assert len(texts) == 1 and "0x" not in texts.pop()
    assert source.sample(2).image.shape == (3, 20, 24)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UnreadableImage, match=r"a\.tar:c\.png: .*No such file"):
        source.sample(2)


# batches


def training(source: Source, **keys: object) -> TrainingBatches:
    data = DataConfig(image_size=16, flip=True)
    given = {"data": data, "masks": MaskConfig(), "grid": (8, 8), "seed": 3, "batch_size": 4, "steps": 8}
    return TrainingBatches(source=source, **{**given, **keys})


def assert_equal(left: Sequence[Batch], right: Sequence[Batch]) -> None:
    assert len(left) == len(right)
    for mine, theirs in zip(left, right, strict=True):
        for name in ("index", "images", "zoom", "labels", "boxes", "mirrored"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
        assert torch.equal(mine.masks.context, theirs.masks.context)
        assert (mine.names, mine.skipped) == (theirs.names, theirs.skipped)


@pytest.mark.parametrize("gib", [0.0, 2.0])
def test_ranks_workers_and_a_resumed_start_change_nothing(tmp_path: Path, gib: float) -> None:
    write(split_shards(tmp_path) / "train-002.tar", {"x.png": "torn", "x.cls": "1", "y.png": picture(9), "y.cls": "2"})
    source = opened(tmp_path)
    data = DataConfig(image_size=16, flip=True, memory_gib=gib)
    whole = list(training(source, data=replace(data, memory_gib=0)))
    assert any(batch.skipped for batch in whole)
    for workers in (0, 2):
        data = replace(data, workers=workers)
        assert_equal(whole, list(training(source, data=data)))
        for start in (3, 7):
            assert_equal(whole[start:], list(training(source, data=data, start_step=start)))
    shares = [list(training(source, data=data, ranks=Ranks(rank, 2))) for rank in (0, 1)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(batch.index, torch.cat([part.index for part in parts]))
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))


def test_a_source_of_shards_travels_to_spawned_workers(tmp_path: Path) -> None:
    source = opened(split_shards(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert names(again) == names(source) and torch.equal(again.sample(5).image, source.sample(5).image)


def test_fixed_views_of_shards_come_in_order(tmp_path: Path) -> None:
    source = opened(split_shards(tmp_path), "val")
    batch = next(view_batches(source, (20, 24)))
    assert torch.equal((batch.images[1] * 255).round().to(torch.uint8), source.sample(1).image)
    assert batch.labels.tolist() == [2, 1, 1]


# images in memory


class Counted:
    """Pictures that say how often each was decoded, in whatever process."""

    name, classes, has_depth = "counted", ("even", "odd"), False
    knows_focal_length = keeps_samples = False

    def __init__(self, length: int, odd_one: int | None = None, broken: tuple[int, ...] = ()) -> None:
        self._length, self._odd_one, self._broken = length, odd_one, broken
        self.times = torch.zeros(length, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self._length

    def name_of(self, index: int) -> str:
        return f"{index}"

    def sample(self, index: int) -> Sample:
        self.times[index] += 1
        if index in self._broken:
            raise UnreadableImage(f"{index}: torn")
        height = 21 if index == self._odd_one else 20
        pixels = np.random.default_rng(index).integers(0, 256, (height, 24, 3), dtype=np.uint8)
        return Sample(torch.from_numpy(pixels).permute(2, 0, 1), None, index % 2, f"{index}")


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_are_decoded_once_and_change_no_batch(workers: int) -> None:
    source = Counted(150, broken=(7, 149))
    data = DataConfig(image_size=16, flip=True, workers=workers)
    kept = list(training(source, data=data, batch_size=50, steps=9))
    assert source.times.tolist() == [2] + [1] * 149  # the first tells the size beforehand
    assert_equal(list(training(source, data=replace(data, memory_gib=0), batch_size=50, steps=9)), kept)
    assert sum(len(batch.skipped) for batch in kept) == 2 * 3


def decodings(source: Counted, **keys: object) -> int:
    data = DataConfig(image_size=16, flip=True, **keys)
    batches = list(training(source, data=data, batch_size=50, steps=9))
    assert_equal(list(training(source, data=replace(data, memory_gib=0), batch_size=50, steps=9)), batches)
    return int(source.times.sum()) - 9 * 50


def test_images_of_several_sizes_or_beyond_the_budget_are_decoded_each_time() -> None:
    needed = 100 * 20 * 24 * 3 / 2**30
    assert decodings(Counted(100), memory_gib=needed) == 101
    assert decodings(Counted(100), memory_gib=needed * 0.99) == 9 * 50 + 1
    assert decodings(Counted(100), memory_gib=0) == 9 * 50
    assert decodings(Counted(100, odd_one=99)) == 1 + 100 + 9 * 50
    assert decodings(Counted(300, odd_one=70), workers=2) > 9 * 50


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_while_images_are_kept_reach_the_user_as_one_clear_message(workers: int) -> None:
    class Faulty(Counted):
        def sample(self, index: int) -> Sample:
            if index == 70:
                raise BadInput("picture 70 is at fault")
            return super().sample(index)

    data = DataConfig(image_size=16, workers=workers)
    with pytest.raises(BadInput) as fault:
        next(iter(training(Faulty(100), data=data, batch_size=50, steps=9)))
    assert str(fault.value) == "picture 70 is at fault"
    with pytest.raises(BadInput, match="none of the 9 images of counted can be read; the first fault: 0: torn"):
        next(iter(training(Counted(9, broken=tuple(range(9))), data=data)))


def test_a_run_of_one_epoch_or_less_keeps_nothing() -> None:
    source = Counted(100)
    list(training(source, batch_size=50, steps=2))
    assert source.times.sum() == 100
    list(training(source, batch_size=50, steps=9, start_step=7, ranks=Ranks(0, 2)))
    assert source.times.sum() == 150


def test_kept_images_are_the_samples_of_the_source(tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / "train" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number, suffix="jpg"))
    (tmp_path / "train" / "cat" / "3.jpg").write_bytes(b"torn")
    shards = opened(write(tmp_path / "other" / "a.tar", labelled([0, 1])))
    classes, flat = (
        open_source(DataConfig(root=str(tmp_path)), "train"),
        open_source(DataConfig(root=str(tmp_path / "train" / "dog")), "train"),
    )
    for source in (shards, classes, flat, Mixture([classes, shards])):
        kept = in_memory(source, 2.0, workers=0)
        assert isinstance(kept, Kept) and isinstance(kept, Source) and len(kept) == len(source)
        assert (kept.name, kept.classes) == (source.name, source.classes)
        for copy in (kept, pickle.loads(pickle.dumps(kept))):
            for index in range(len(source)):
                try:
                    expected = source.sample(index)
                except UnreadableImage as fault:
                    with pytest.raises(UnreadableImage, match=str(fault)):
                        copy.sample(index)
                    continue
                sample = copy.sample(index)
                assert torch.equal(sample.image, expected.image) and sample.image.stride() == expected.image.stride()
                assert (sample.label, sample.name, sample.depth) == (expected.label, expected.name, None)


# real data


def test_imagenette_is_read(real_data: Path) -> None:
    root = real_data / "imagenette128"
    train, val = opened(root), opened(root, "val")
    assert (len(train), len(val)) == (9469, 3925)
    assert train.classes == val.classes and len(train.classes) == 10 and train.classes[0] == "n01440764"
    for source in (train, val):
        for index in range(0, len(source), 500):
            sample = source.sample(index)
            assert sample.image.shape == (3, 128, 128)
            # The names of the members begin with the class: an independent source of the label.
            assert sample.name.partition(":")[2].startswith(source.classes[sample.label])
    assert np.bincount(val.labels).tolist() == [387, 395, 357, 386, 409, 394, 389, 419, 399, 390]
    few = opened(root, classes=("n03888257", "n01440764"), images_per_class=3)
    assert len(few) == 6 and {few.sample(index).name.partition(":")[2][:9] for index in range(6)} == set(few.classes)
