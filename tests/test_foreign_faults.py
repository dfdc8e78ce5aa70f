"""Faults of libraries and launchers become one message, and messages say what is really there."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from depthjepa import distributed, training
from depthjepa.commands.convert import convert
from depthjepa.data import images, reading
from depthjepa.data.config import DataConfig
from depthjepa.data.images import decode, upright_size
from depthjepa.data.loading import open_source, view_batches
from depthjepa.data.samples import Sample
from depthjepa.faults import BadInput, RunStopped
from depthjepa.formats.opening import open_file
from depthjepa.logbook import RunFolder, whole_file, write_whole
from tiny_images import picture, save, write_flat
from tiny_runs import Call, run


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "1"}, "RANK=1 is set without WORLD_SIZE: let torchrun set them, or unset all of them"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK: let torchrun"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' is no whole number: let torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no whole number above 0: let"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0' is no whole number above 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' is no whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2: ranks are 0 to 1; let"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1.5"}, "LOCAL_RANK='1.5' is no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, "ranks are 0 to 3"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without MASTER_ADDR: let torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT='x' is no"),
    ],
)
def test_ranks_that_cannot_be_end_before_anything_is_done(
    given: dict[str, str], said: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    status, output, errors = call("train", "demo", "--out", tmp_path / "run")
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert said in errors
    assert not (tmp_path / "run").exists()


def test_empty_ranks_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert distributed.ranks() == distributed.Ranks()


def with_exif(path: Path, orientation: object, spoil: Callable[[bytes], bytes] = bytes) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    Image.fromarray(picture(1, 20, 30)).save(path, quality=95, exif=spoil(exif.tobytes()))
    return path


@pytest.mark.parametrize(
    "spoil",
    [lambda block: block[:9], lambda block: block[:14] + b"\xff" * 20, lambda block: b"Exif\0\0nonsense"],
    ids=["cut short", "overwritten", "nonsense"],
)
def test_a_broken_exif_block_does_not_cost_the_photograph(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = with_exif(tmp_path / "a.jpg", 6, spoil)
    assert decode(path).shape == (3, 20, 30)
    assert upright_size(path) == (20, 30)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_there_is_not_turns_nothing(tmp_path: Path, value: int) -> None:
    assert decode(with_exif(tmp_path / "a.jpg", value)).shape == (3, 20, 30)


@pytest.mark.parametrize("value", range(1, 9))
def test_orientations_are_those_of_pillow(tmp_path: Path, value: int) -> None:
    from PIL import ImageOps

    path = with_exif(tmp_path / "a.jpg", value)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(path).permute(1, 2, 0).numpy(), expected)
    assert upright_size(path) == expected.shape[:2]


def test_faults_of_files_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(images.UnreadableImage, match=r"empty\.jpg: it is empty, 0 bytes"):
        decode(tmp_path / "empty.jpg")
    with pytest.raises(images.UnreadableImage, match=r"a\.tar:b\.png: it is empty, 0 bytes"):
        images.decode_bytes(b"", "a.tar:b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(images.UnreadableImage, match=r"a\.png: .*exceeds limit"):
        decode(save(tmp_path / "a.png", picture(1)))


def test_images_of_odd_sizes_are_trained_on(tmp_path: Path) -> None:
    for name, size in {"point": (1, 1), "row": (2, 9000), "column": (9000, 2), "line": (1, 300)}.items():
        save(tmp_path / "odd" / f"{name}.png", picture(3, *size))
    assert run(tmp_path / "odd", tmp_path / "run", "train.steps=2", "train.batch_size=4")["skipped_images"] == 0


def odd_names(root: Path) -> Path:
    write_flat(root, 3, 48)
    (root / "0000.png").rename(root / os.fsdecode(b"caf\xe9.png"))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    run(write_flat(place / "flat", 8, 48), place / "run", "train.steps=1")
    return place / "run"


def test_names_that_are_not_utf_8_are_kept_or_refused(trained: Path, tmp_path: Path, call: Call) -> None:
    root = odd_names(tmp_path / "odd")
    for suffix in (".parquet", ".safetensors"):
        status, _, errors = call("embed", trained, root, "--out", tmp_path / f"a{suffix}")
        assert status == 2
        assert rf"the name 'caf\udce9.png' is not UTF-8, which {suffix} cannot hold: rename it, or write .npz" in (
            errors.replace("\\\\", "\\")
        )
    assert call("embed", trained, root, "--out", tmp_path / "a.npz")[0] == 0
    kept = np.load(tmp_path / "a.npz")["paths"]
    assert os.fsencode(str(kept[2])) == b"caf\xe9.png"
    (root / "0001.png").rename(root / "two\nlines.png")
    (root / os.fsdecode(b"caf\xe9.png")).unlink()
    assert "has a line break in it" in call("embed", trained, root, "--out", tmp_path / "b.safetensors")[2]


def test_such_names_can_be_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "page.html", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "page.html").read_text() == r"caf\udce9"
    from depthjepa import cli

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    monkeypatch.setattr(sys, "argv", ["depthjepa", "recipes"])
    monkeypatch.setattr("depthjepa.cli.program.app", lambda **_: print(os.fsdecode(b"caf\xe9"), flush=True))
    with pytest.raises(SystemExit):
        cli.main()
    assert written.getvalue() == b"caf\\udce9\n"


@pytest.mark.slow
def test_a_run_on_such_names_is_whole(tmp_path: Path) -> None:
    root = odd_names(tmp_path / os.fsdecode(b"d\xe9"))
    (root / "0001.png").write_bytes(b"")
    for number in range(200):
        save(root / f"more{number}.png", picture(number % 5, 8, 8))
    run(root, tmp_path / "run", "train.epochs=1", "train.batch_size=64")
    folder = RunFolder(tmp_path / "run")
    assert folder.config()["data"]["root"] == str(root)
    assert folder.summary()["skipped_names"] == [f"{root}/0001.png: it is empty, 0 bytes"]


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Sets the largest size of a file: what is beyond it fails as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size < 0 else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("to", ["hf", "timm", "safetensors", "reference", "depthjepa"])
def test_a_full_disk_is_said_whatever_is_written(
    to: str, trained: Path, tmp_path: Path, limit: Callable[[int], None]
) -> None:
    limit(5000)
    with pytest.raises(RunStopped, match=r"the disk is full: \S+ could not be written; make room and give the command"):
        convert(str(trained), tmp_path / "out", to)
    limit(-1)
    assert not [each for each in (tmp_path / "out").rglob("*") if each.is_file()]


@pytest.mark.slow
def test_a_full_disk_under_what_is_printed_is_said(tmp_path: Path) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    with (tmp_path / "keys.txt").open("w") as file:
        command = [sys.executable, "-m", "depthjepa", "recipes", "--keys"]
        ended = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, preexec_fn=full, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "depthjepa: the disk is full: what is printed was not written\n"


def test_what_is_left_of_a_run_is_said(tmp_path: Path, limit: Callable[[int], None], trained: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    folder.begin({}, {})
    for where, said in ((folder.path, "there is no checkpoint yet"), (trained, "the last checkpoint is whole")):
        limit(10)
        with (
            pytest.raises(RunStopped, match=rf"could not be written; {said}\. Make room and go on with --resume"),
            whole_file(where / "figures" / "big.npz") as file,
        ):
            file.write(bytes(100))
        limit(-1)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_says_whether_there_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = training.train_step

    def failing(state: Any, parts: Any) -> dict[str, Any]:
        if state.step == failing_at:
            raise RunStopped("loss is nan")
        return step(state, parts)

    monkeypatch.setattr(training, "train_step", failing)
    root = write_flat(tmp_path / "flat", 8, 48)
    for failing_at, said in ((0, "there is no checkpoint yet"), (1, "the last checkpoint is whole")):
        with pytest.raises(RunStopped, match=rf"loss is nan \({said}\)"):
            run(root, tmp_path / f"run{failing_at}", "train.steps=2", "train.checkpoint_every=1")


@pytest.fixture(scope="module")
def encoder(trained: Path) -> dict[str, torch.Tensor]:
    content = torch.load(trained / "checkpoints" / "last.pt")["model"]
    begin = "target_encoder."
    return {key.removeprefix(begin): value for key, value in content.items() if key.startswith(begin)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
        lambda weights: {f"module._orig_mod.{key}": value for key, value in weights.items()},
        lambda weights: {f"backbone.{key}": value for key, value in weights.items()},
        lambda weights: {"state_dict": {f"model.backbone.{key}": value for key, value in weights.items()}, "epoch": 3},
        lambda weights: {"model": weights, "optimizer": {}},
        lambda weights: {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in weights.items()},
    ],
    ids=["DDP", "compiled", "both", "backbone", "Lightning", "timm's training", "compiled block"],
)
def test_wrappers_are_taken_off(
    wrap: Callable[[dict[str, Any]], dict[str, Any]], encoder: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wrapped = wrap(encoder)
    torch.save(wrapped, tmp_path / "a.pt")
    files = [tmp_path / "a.pt"]
    if all(isinstance(value, torch.Tensor) for value in wrapped.values()):
        save_file(wrapped, tmp_path / "a.safetensors")
        files.append(tmp_path / "a.safetensors")
    for file in files:
        found = open_file(file, heads=2)
        assert not isinstance(found, dict)
        assert found.encoders["single"].keys() == encoder.keys()


def test_what_is_no_encoder_of_ours_is_told_by_its_names(encoder: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def fault(content: dict[str, Any]) -> str:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(BadInput) as said:
            open_file(tmp_path / "a.pt", heads=2)
        return str(said.value).removeprefix(f"{tmp_path / 'a.pt'} ")

    backbone = {f"backbone.{key}": value for key, value in encoder.items()}
    assert fault(backbone | {"head.weight": torch.zeros(2)}) == (
        "holds an encoder whose names begin with 'backbone.', beside head.weight: keep the tensors of the encoder alone"
    )
    assert "holds several encoders, whose names begin with 'backbone.' and 'teacher.'" in fault(
        backbone | {f"teacher.{key}": value for key, value in encoder.items()}
    )
    positions = encoder["pos_embed"].shape[1]
    more = {"pos_embed": torch.zeros(1, positions + 1, 32), "cls_token": torch.zeros(1, 1, 32)}
    assert fault(encoder | more) == (
        f"holds an encoder with a class token ({positions + 1} positions = {positions} + 1): cls_token; encoders of "
        f"I-JEPA have patches alone, so it cannot be read (a run starts from it where it is in a folder of timm or "
        f"transformers: init.checkpoint)"
    )
    save_file({"net.a": torch.zeros(1), "net.b": torch.zeros(1), "head": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(BadInput, match=r"weight is missing among names that begin with net\. \(2\), head$"):
        open_file(tmp_path / "b.safetensors")


def test_a_class_token_without_its_tensor_is_guessed_at(
    encoder: dict[str, torch.Tensor], tmp_path: Path, call: Call
) -> None:
    positions = encoder["pos_embed"].shape[1]
    torch.save(encoder | {"pos_embed": torch.zeros(1, positions + 1, 32)}, tmp_path / "a.pt")
    status, _, errors = call("convert", tmp_path / "a.pt", tmp_path / "out", "--to", "hf", "model.heads=2")
    assert status == 2
    assert f"(or it has a class token, {positions + 1} positions = {positions} + 1:" in errors


def test_images_with_depth_are_counted_not_those_seen(pairs_of_depth: Path, trained: Path, call: Call) -> None:
    status, _, errors = call("probe", trained, "depth", "--data", pairs_of_depth)
    assert status == 2 and "needs at least 5 training images with valid depth" in errors
    assert "of 8 images 2 have any" in errors


@pytest.fixture
def pairs_of_depth(tmp_path: Path) -> Path:
    """Eight training pairs of which two have any depth, and a pair for validation."""
    for split, number in (*(("train", number) for number in range(8)), ("val", 0)):
        save(tmp_path / split / "rgb" / f"{number}.png", picture(number))
        depth = np.full((56, 72), 1000 if number < 2 else 0, np.uint16)
        save(tmp_path / split / "depth" / f"{number}.png", depth)
    return tmp_path


class Ending:
    """A source whose images end the process that decodes them, as a full shared memory does."""

    name, classes, has_depth, knows_focal_length, keeps_samples = "ending", (), False, False, False

    def __len__(self) -> int:
        return 4

    def name_of(self, index: int) -> str:
        return str(index)

    def sample(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGBUS)
        raise AssertionError


def test_a_worker_that_is_gone_is_said_with_what_to_do() -> None:
    with pytest.raises(RunStopped, match=r"a process that decodes images is gone .* take fewer data\.workers"):
        list(view_batches(Ending(), (8, 8), workers=1))


def test_no_shared_memory_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading.multiprocessing, "RawValue", full)
    source = open_source(DataConfig(root=str(write_flat(tmp_path, 2))), "train")
    with pytest.raises(RunStopped, match=r"no memory can be shared .* \(No space left on device\): make room in /dev"):
        list(view_batches(source, (8, 8), workers=1))
    assert len(list(view_batches(source, (8, 8)))) == 1
