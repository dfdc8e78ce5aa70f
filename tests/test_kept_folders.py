"""What folders hold is kept from start to start, and is what it would be were they listed anew."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from depthjepa import cost, training
from depthjepa.cache_folder import cache_folder as place
from depthjepa.data import kept_folders
from depthjepa.data.account import what_is_read
from depthjepa.data.config import DataConfig
from depthjepa.data.listing import Listing, list_images
from depthjepa.data.loading import open_splits
from depthjepa.data.shards.place import Folder
from depthjepa.faults import BadInput
from tiny_images import write_classes, write_flat, write_labelled, write_pairs
from tiny_runs import tiny

TICK = 0.03  # seconds, more than one of the clock that a file system goes by


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small folders are kept, and so are those that have just changed."""
    monkeypatch.setattr(kept_folders, "LEAST", 1)
    monkeypatch.setattr(kept_folders, "SETTLED", 0)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed from now on."""
    scandir, found = os.scandir, list[str]()

    def watched(folder: os.PathLike[str]) -> object:
        found.append(str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", watched)
    return found


def anew(root: Path) -> Listing:
    """What is listed where nothing is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPTHJEPA_CACHE", str(root.parent / "no cache"))
        patch.setattr(kept_folders, "LEAST", 1 << 60)
        return list_images(root)


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders in folders, links to folders and files, and what is passed over."""
    beside = files(tmp_path / "beside", "0.png", "deep/1.jpg")
    files(tmp_path / "other", "7.png", "8.png")
    folder = files(
        tmp_path / "photos",
        *("0.png", "1.jpg", "notes.txt", ".hidden.png", "a/0.png", "a/b/0.png", "a/b/1.png", "c/0.JPG", ".d/0.png"),
        *("thumbnails/0.png", "e/thumbnails/0.png", "@eaDir/0.png", os.fsdecode(b"e/\xff\xfe.png"), "e/a\nb.png"),
    )
    os.mkfifo(folder / "pipe.png")
    (folder / "link").symlink_to(beside)
    (folder / "link.png").symlink_to(beside / "0.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "a" / "up").symlink_to("..")
    (tmp_path / "middle").symlink_to("beside/deep")
    (folder / "far").symlink_to("../middle")
    time.sleep(TICK)
    return folder


def test_a_second_time_no_folder_is_scanned(root: Path, at_once: None, scanned: list[str]) -> None:
    first = list_images(root)
    assert len(first.names) > 9 and len(first.ignored) > 4 and str(root / "a" / "b") in scanned
    scanned.clear()
    assert list_images(root) == first
    assert not scanned
    assert anew(root) == first


def rewritten(folder: Path, *names: str) -> None:
    shutil.rmtree(folder)
    files(folder, *names)


def with_times_put_back(folder: Path) -> None:
    before = folder.stat()
    files(folder, "new.png")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchanged(folder: Path, other: Path) -> None:
    """Put another folder in its place, with its time of the last change."""
    before = folder.stat()
    folder.rename(other.with_name("away"))
    other.rename(folder)
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def led_elsewhere(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


def turned_into_a_folder(file: Path) -> None:
    file.unlink()
    files(file, "0.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "file added": lambda root: files(root, "a/b/new.png"),
    "file added to the first": lambda root: files(root, "new.png"),
    "file removed": lambda root: (root / "a/b/1.png").unlink(),
    "file renamed": lambda root: (root / "a/b/1.png").rename(root / "a/b/2.png"),
    "file moved": lambda root: (root / "a/b/1.png").rename(root / "c/1.png"),
    "file hidden": lambda root: (root / "a/b/1.png").rename(root / "a/b/.1.png"),
    "file turned into a folder": lambda root: turned_into_a_folder(root / "a/0.png"),
    "folder added": lambda root: files(root, "a/new/0.png"),
    "folder removed": lambda root: shutil.rmtree(root / "a"),
    "folder renamed": lambda root: (root / "a/b").rename(root / "a/x"),
    "folder moved": lambda root: (root / "a/b").rename(root / "b"),
    "folder written anew": lambda root: rewritten(root / "a/b", "5.png"),
    "folder replaced by another": lambda root: exchanged(root / "c", root.parent / "other"),
    "all replaced": lambda root: exchanged(root, root.parent / "other"),
    "times put back": lambda root: with_times_put_back(root / "a/b"),
    "link to a folder added": lambda root: (root / "a/also").symlink_to(root.parent / "other"),
    "link to a folder removed": lambda root: (root / "link").unlink(),
    "link leads elsewhere": lambda root: led_elsewhere(root / "link", root.parent / "other"),
    "link's folder changed": lambda root: files(root.parent / "beside", "deep/2.png"),
    "link's folder replaced": lambda root: rewritten(root.parent / "beside", "5.png", "6.png"),
    "link's folder gone": lambda root: shutil.rmtree(root.parent / "beside"),
    "link's link leads elsewhere": lambda root: led_elsewhere(root.parent / "middle", root.parent / "other"),
    "link's link leads above": lambda root: led_elsewhere(root.parent / "middle", root.parent),
    "link's file turned into a folder": lambda root: turned_into_a_folder(root.parent / "beside/0.png"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen_and_the_rest_is_not_listed_again(
    root: Path, at_once: None, scanned: list[str], what: str
) -> None:
    list_images(root)
    before = list_images(root)
    CHANGES[what](root)
    time.sleep(TICK)
    scanned.clear()
    after = list_images(root)
    assert len(scanned) < 5  # of eight
    assert after == anew(root) != before
    scanned.clear()
    assert list_images(root) == after
    assert not scanned


def test_a_folder_that_changed_within_the_clock_s_tick_is_listed_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, scanned: list[str]
) -> None:
    monkeypatch.setattr(kept_folders, "LEAST", 1)
    list_images(root)
    assert not any(place().rglob("*"))
    scanned.clear()
    assert list_images(root) == anew(root)
    assert str(root) in scanned


def test_of_small_folders_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: list[str]) -> None:
    monkeypatch.setattr(kept_folders, "SETTLED", 0)
    root = files(tmp_path / "photos", *(f"{number:04}.png" for number in range(kept_folders.LEAST - 1)))
    time.sleep(TICK)
    list_images(root)
    assert not any(place().rglob("*"))
    files(root, "one more.png")
    time.sleep(TICK)
    assert len(list_images(root).names) == kept_folders.LEAST
    assert len(list((place() / "listings").iterdir())) == 1
    scanned.clear()
    assert len(list_images(root).names) == kept_folders.LEAST and not scanned


def test_what_is_gone_is_forgotten(root: Path, at_once: None) -> None:
    list_images(root)
    (file,) = (place() / "listings").iterdir()
    size = file.stat().st_size
    files(root, *(f"many/{number}/{word}.png" for number in range(20) for word in ("some", "more")))
    time.sleep(TICK)
    list_images(root)
    assert file.stat().st_size > size + 100
    shutil.rmtree(root / "many")
    time.sleep(TICK)
    list_images(root)
    assert file.stat().st_size < size + 20


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "another form", "a folder"])
def test_a_damaged_file_is_ignored_and_written_anew(root: Path, at_once: None, scanned: list[str], damage: str) -> None:
    expected = list_images(root)
    (file,) = (place() / "listings").iterdir()
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"empty": b"", "cut": whole[:-9], "changed": changed, "another form": b"{}" * 99}[damage])
    scanned.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert list_images(root) == expected
    assert str(root) in scanned
    if damage == "a folder":
        assert "cannot be written (Is a directory)" in str(said[0].message)
    else:
        assert not said and file.read_bytes() == whole


def test_without_a_cache_folder_it_is_done_and_said_once(
    root: Path, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list_images(root)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEPTHJEPA_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert list_images(root) == list_images(root) == expected
    (warning,) = said
    assert str(warning.message) == (
        f"{tmp_path}/file/listings cannot be written (Not a directory): large folders are listed anew at each start, "
        f"unless DEPTHJEPA_CACHE names a folder for that"
    )
    for name in ("DEPTHJEPA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert list_images(root) == list_images(root) == expected
    (warning,) = said
    assert "there is no cache folder" in str(warning.message)
    with pytest.raises(BadInput, match="name one by the variable DEPTHJEPA_CACHE"):
        place()


def test_file_systems_without_true_times_are_listed_anew(
    root: Path, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: list[str]
) -> None:
    device = root.stat().st_dev
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(kept_folders, "MOUNTS", mounts)
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /a\\040b rw,noatime master:1 - {{}} /dev/x rw\n"
    mounts.write_text(line.format("fuse.sshfs"))
    assert list_images(root) == anew(root)
    assert not any(place().rglob("*"))
    mounts.write_text(line.format("ext4"))
    list_images(root)
    scanned.clear()
    list_images(root)
    assert not scanned
    mounts.unlink()  # a system without such a list
    files(root, "new.png")
    time.sleep(TICK)
    assert list_images(root) == anew(root)


def test_of_the_processes_on_a_machine_the_first_one_writes(
    root: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, written in (("1", 0), ("0", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        list_images(root)
        assert len(list(place().rglob("listings/*"))) == written


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "classes": lambda root: write_classes(root, 3),
    "flat": lambda root: write_flat(root, 3),
    "pairs": lambda root: write_pairs(root, 3, 2),
    "labelled": lambda root: write_labelled(root, 3, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_are_opened_again_without_a_scan(
    tmp_path: Path, at_once: None, scanned: list[str], monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    root = LAYOUTS[layout](tmp_path / "data")
    time.sleep(TICK)
    config = DataConfig(root=str(root))

    def opened() -> tuple[str, list[str]]:
        data = open_splits(config)
        names = [source.name_of(index) for source in data.values() for index in range(len(source))]
        return what_is_read(config, data), names

    first = opened()
    assert any(folder.startswith(str(root)) for folder in scanned)
    scanned.clear()
    assert opened() == first
    assert not [folder for folder in scanned if folder.startswith(str(root))]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").symlink_to("data")
    for other in ("data", "./data", "elsewhere"):  # the same folder by other paths
        assert [len(source) for source in open_splits(DataConfig(root=other)).values()]
    assert not [folder for folder in scanned if "data" in folder or "elsewhere" in folder]


def test_a_run_starts_again_without_a_scan_and_sees_what_was_added(
    tmp_path: Path, at_once: None, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    root = write_classes(tmp_path / "photos", 8)
    time.sleep(TICK)

    def start(out: str) -> str:
        said: list[str] = []
        scanned.clear()
        training.train(tiny(root, "train.steps=1"), tmp_path / out, say=said.append)
        return said[0]

    assert "train 16 images" in start("first")
    assert {folder for folder in scanned if folder.startswith(str(root))}
    assert "train 16 images" in start("second")
    assert not [folder for folder in scanned if folder.startswith(str(root))]
    shutil.copy(root / "train/red/0000.png", root / "train/red/new.png")
    time.sleep(TICK)
    assert "train 17 images" in start("third")
    assert {folder for folder in scanned if folder.startswith(str(root))} == {str(root / "train/red")}


def test_real_folders_are_scanned_once(real_data: Path, scanned: list[str]) -> None:
    root = real_data / "tinyimagenet64"
    config = DataConfig(root=str(root))
    before = [source.stamps() for source in open_splits(config).values()]
    assert len(scanned) > 20
    scanned.clear()
    again = [source.stamps() for source in open_splits(config).values()]
    assert not scanned and all((one == other).all() for one, other in zip(before, again, strict=True))


def test_shards_beside_many_images_are_found(tmp_path: Path, at_once: None) -> None:
    root = files(tmp_path / "photos", "a.tar", ".b.tar", "c.TAR", "d.png")
    (root / "e.tar").symlink_to("nowhere")
    (root / "f.tar").symlink_to("a.tar")
    assert [shard.name for shard in Folder(root).shards()] == ["a.tar", "f.tar"]
