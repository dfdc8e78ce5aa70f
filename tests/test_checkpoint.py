"""A checkpoint is whole or absent, is read without running code, and is loaded strictly or refused with a reason."""

from __future__ import annotations

import errno
import functools
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from depthjepa import cost
from depthjepa.backbones.opening import load_encoder
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import to_mapping
from depthjepa.faults import BadInput, RunStopped
from depthjepa.formats.weights import load_strictly
from depthjepa.method import build_encoder
from tiny_images import write_pairs
from tiny_runs import GUIDED, differences, run, tiny, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished guided run."""
    place = tmp_path_factory.mktemp("run")
    write_pairs(place / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        run(place / "pairs", place / "run", *GUIDED, "train.steps=3", "optim.lr=1e-2", "optim.momentum=0.5")
    return place / "run"


def file_of(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"


# reading


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    content, loaded = weights(folder), load_checkpoint(folder)
    assert loaded.path == file_of(folder)
    assert (loaded.step, loaded.classes, loaded.skipped) == (3, (), ())
    assert differences(dict(content["model"]), dict(loaded.model)) == []
    assert differences(content["optimizer"], loaded.optimizer) == []
    assert loaded.whitening is not None
    assert torch.equal(loaded.whitening.mean, content["whitening"]["mean"])
    assert loaded.floor == content["floor"] > 0
    assert to_mapping(loaded.config) == content["config"]


def test_a_file_and_its_run_folder_are_the_same_checkpoint(folder: Path) -> None:
    one, other = load_checkpoint(folder), load_checkpoint(file_of(folder))
    assert differences(dict(one.model), dict(other.model)) == []


def test_the_encoders_are_the_run_s_own_and_differ(folder: Path) -> None:
    target, context = (load_encoder(folder, which) for which in ("target", "context"))
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(target(images), context(images))
    for name, encoder in (("target", target), ("context", context)):
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        assert encoder(images).shape == (2, 36, encoder.width)
        assert (encoder.patch_size, encoder.width) == (8, 32)
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, weights(folder)["model"][f"{name}_encoder.{key}"])


class Planted:
    """Unpickles by making a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    for name, write in (("torch.pt", torch.save), ("plain.pt", functools.partial(pickle.dump, protocol=2))):
        with (tmp_path / name).open("wb") as file:
            write({"format": 1, "model": Planted(tmp_path / "ran")}, file)
        with pytest.raises(BadInput, match=rf"{name} would run code when it is read \(posix\.mkdir\)"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.95, 0.9999])
def test_a_truncated_file_is_refused(folder: Path, tmp_path: Path, share: float) -> None:
    content = file_of(folder).read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=r"cut\.pt is (truncated, its end is missing|empty): download or copy it again"):
        load_checkpoint(tmp_path / "cut.pt")


def test_files_of_another_kind_are_refused_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello\n" * 100)
    np.savez(tmp_path / "arrays.npz", weights=np.zeros(3))
    save_file({"weights": torch.zeros(3)}, tmp_path / "weights.safetensors")
    torch.save({"encoder": {"weight": torch.zeros(3)}}, tmp_path / "foreign.pt")
    torch.save({"format": 0, "model": {}}, tmp_path / "old.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    for file in tmp_path.iterdir():
        with pytest.raises(BadInput, match=file.name) as fault:
            load_checkpoint(file)
        assert "\n" not in str(fault.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no checkpoint .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"holds no checkpoint: neither checkpoints/last\.pt nor config\.json is there"):
        load_checkpoint(tmp_path)


def test_weights_of_another_shape_are_refused_and_the_keys_are_named(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    own = dict(build_encoder(loaded.config).state_dict())
    wider = build_encoder(build_config(to_mapping(loaded.config), ["model.width=48"]))
    with pytest.raises(BadInput, match=r"blocks\.0\.attn\.proj\.bias is \(32,\), expected \(48,\)"):
        load_strictly(wider, own, loaded.path)
    deeper = build_encoder(build_config(to_mapping(loaded.config), ["model.depth=3"]))
    with pytest.raises(BadInput, match=r"last\.pt does not fit the model: missing blocks\.2\.attn.* and \d+ more"):
        load_strictly(deeper, own, loaded.path)
    shallower = build_encoder(build_config(to_mapping(loaded.config), ["model.depth=1"]))
    before = {key: value.clone() for key, value in shallower.state_dict().items()}
    with pytest.raises(BadInput, match=r"left over blocks\.1\."):
        load_strictly(shallower, own, loaded.path)
    assert differences(before, dict(shallower.state_dict())) == []


# writing


def write(place: Path, step: int) -> Path:
    """Write a checkpoint of a network that is its own optimiser's only parameter."""
    network = torch.nn.Linear(2, 2)
    content = checkpoint.content(
        step=step,
        epoch=0.0,
        config=tiny(place),
        classes=(),
        model=network.state_dict(),
        optimizer=torch.optim.AdamW(network.parameters()).state_dict(),
        whitening=None,
        floor=None,
        skipped=(),
    )
    path = place / "checkpoints" / "last.pt"
    checkpoint.save(path, content)
    return path


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("moment", ["write", "flush"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, moment: str
) -> None:
    path = write(tmp_path, step=1)
    before = path.read_bytes()
    whole = torch.save

    def half(content: object, file: Any) -> None:
        whole(content, file)
        file.truncate(100)
        if moment == "write":
            raise OSError(number, "planted")

    def refused(_: int) -> None:
        raise OSError(number, "planted")

    monkeypatch.setattr(torch, "save", half)
    if moment == "flush":
        monkeypatch.setattr(os, "fsync", refused)
    # A disk that is full is the user's to clear; a broken one keeps its traceback.
    with pytest.raises(OSError if number == errno.EIO else RunStopped):
        write(tmp_path, step=2)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, step=1)
    synchronise, seen = os.fsync, []

    def watched(descriptor: int) -> None:
        synchronise(descriptor)
        seen.append(load_checkpoint(path).step)

    monkeypatch.setattr(os, "fsync", watched)
    with path.open("rb") as reader:  # who reads the old file while the new one comes reads it to its end
        before = path.read_bytes()
        write(tmp_path, step=2)
        assert reader.read() == before
    assert seen == [1]
    assert load_checkpoint(path).step == 2
