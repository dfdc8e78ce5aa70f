"""Data are known by what they hold: what was changed is refused, and what was only moved is the same."""

from __future__ import annotations

import io
import json
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa import cost, training
from depthjepa.commands import fit_teacher as fitting
from depthjepa.commands.teach import teach
from depthjepa.config.reading import build_fit
from depthjepa.data import contents
from depthjepa.data.contents import changes, contents_of, read_contents, stamps_of
from depthjepa.data.loading import open_source
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.teachers.depthfm import tiny as tiny_teacher
from depthjepa.logbook import RunFolder
from depthjepa.run.state import moved
from depthjepa.study.plan import Study
from depthjepa.study.running import run_study
from tiny_images import millimetres, picture, save, write_classes, write_flat, write_pairs
from tiny_runs import SETTINGS, Call, differences, metrics, recipe_file, run, tiny, weights

STEPS = 5
TAUGHT = (
    "guidance.kind=feature",
    "guidance.teacher=depthfm-tiny",
    "guidance.teacher_size=64",
    "guidance.teacher_steps=1",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run on a root that was stopped after its second step."""
    step = training.train_step

    def stop(state: Any, parts: Any) -> dict[str, Any]:
        figures: dict[str, Any] = step(state, parts)
        if state.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return figures

    def begin(root: Path | str, folder: Path, *overrides: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(training, "train_step", stop)
            with pytest.raises(RunStopped, match="continue with --resume"):
                run(Path(root), folder, f"train.steps={STEPS}", *overrides)
        return folder

    return begin


def write_shards(root: Path, images: int = 10, label: int = 1) -> Path:
    root.mkdir(parents=True)
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-0.tar", "w") as shard:
            for number in range(images):
                file = io.BytesIO()
                Image.fromarray(picture(number)).save(file, "png")
                for suffix, raw in (("png", file.getvalue()), ("cls", str(number % 2 and label).encode())):
                    member = tarfile.TarInfo(f"{number:04}.{suffix}")
                    member.size = len(raw)
                    shard.addfile(member, io.BytesIO(raw))
    return root


def flat(root: Path) -> Path:
    return write_flat(root, 12, 48)


def replaced(file: Path) -> None:
    """Another picture, whose file has another size."""
    save(file, picture(77, 40, 40))


def rebuilt(write: Callable[..., Path], **changes: int) -> Callable[[Path], None]:
    def rebuild(root: Path) -> None:
        shutil.rmtree(root)
        write(root, **changes)

    return rebuild


CHANGED = {
    "added": (flat, lambda root: save(root / "new.png", picture(5)), "train: 1 added (new.png)"),
    "removed": (flat, lambda root: (root / "0003.png").unlink(), "train: 1 removed (0003.png)"),
    "renamed": (
        flat,
        lambda root: (root / "0003.png").rename(root / "a.png"),
        "train: 1 added (a.png), 1 removed (0003.png)",
    ),
    "replaced": (flat, lambda root: replaced(root / "0003.png"), "train: 1 changed (0003.png)"),
    "many": (
        flat,
        lambda root: [save(root / f"x{number}.png", picture(number)) for number in range(5)],
        "train: 5 added (x0.png, x1.png, x2.png and 2 more)",
    ),
    "validation": (
        write_pairs,
        lambda root: [(root / f"val/{part}/1003.png").unlink() for part in ("rgb", "depth")],
        "val: 1 removed (val/rgb/1003.png);",
    ),
    "depth": (
        write_pairs,
        lambda root: save(root / "train/depth/0004.png", millimetres(4) * 3),
        "train: 1 changed (train/rgb/0004.png)",
    ),
    "facts": (
        write_pairs,
        lambda root: (root / "dataset.json").write_text('{"depth_scale": 500.0}'),
        "train: 24 changed",
    ),
    "class": (
        write_classes,
        lambda root: (root / "train/red/0001.png").rename(root / "train/blue/1.png"),
        "train: 1 added (train/blue/1.png), 1 removed (train/red/0001.png)",
    ),
    "shards": (write_shards, rebuilt(write_shards, images=11), "train: 1 added (train-0.tar:0010.png)"),
    "label": (write_shards, rebuilt(write_shards, label=0), "train: 5 changed (train-0.tar:0001.png, "),
}


@pytest.mark.parametrize("what", CHANGED)
def test_changed_data_are_refused_on_resume_and_what_changed_is_named(
    tmp_path: Path, cut: Callable[..., Path], call: Call, what: str
) -> None:
    write, change, said = CHANGED[what]
    root = write(tmp_path / "data")
    folder = cut(root, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    change(root)  # type: ignore[no-untyped-call]
    recipe = recipe_file(tmp_path / "recipe.yaml", root, f"train.steps={STEPS}")
    status, _, errors = call("train", recipe, "--out", folder, "--resume")
    assert status == 2 and errors.count("\n") == 1
    assert f"{folder} was begun with other data: " in errors and said in errors
    assert {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("write", [flat, write_pairs, write_classes, write_shards])
def test_a_run_copied_to_another_machine_goes_on_to_bit_by_bit_the_same_end(
    tmp_path: Path, cut: Callable[..., Path], call: Call, write: Callable[..., Path]
) -> None:
    root = write(tmp_path / "here/data")
    run(root, tmp_path / "whole", f"train.steps={STEPS}")
    cut(root, tmp_path / "here/run")
    shutil.move(tmp_path / "here", tmp_path / "there")
    place, folder = f"data.root={tmp_path / 'there/data'}", tmp_path / "there/run"
    status, _, said = call("train", "demo", "--out", folder, "--resume")
    assert status == 2 and f"no folder {root}" in said and "goes on with data.root=PLACE" in said
    status, _, said = call("train", "demo", "--out", folder, "--resume", place)
    assert status == 0, said
    assert metrics(folder) == metrics(tmp_path / "whole")
    ours, other = weights(folder), weights(tmp_path / "whole")
    assert differences(ours, other) == ["/config/data/root"]
    assert RunFolder(folder).config()["data"]["root"] == str(tmp_path / "there/data")
    assert call("train", "demo", "--out", folder, "--resume")[0] == 0  # the new place is the run's own now


def test_other_data_are_refused_wherever_they_lie_and_however_far_the_run_is(
    tmp_path: Path, cut: Callable[..., Path]
) -> None:
    root, other = flat(tmp_path / "data"), write_flat(tmp_path / "other", 11, 48)
    folder = cut(root, tmp_path / "run")
    for _ in range(2):
        with pytest.raises(BadInput, match=r"begun with other data: train: 1 removed \(0011.png\)"):
            run(other, folder, f"train.steps={STEPS}", resume=True)
        run(root, folder, f"train.steps={STEPS}", resume=True)  # to its end
    shutil.copytree(root, tmp_path / "copy")
    assert run(tmp_path / "copy", folder, f"train.steps={STEPS}", resume=True)["finished"]


def test_scenes_of_another_seed_are_other_data(tmp_path: Path, cut: Callable[..., Path]) -> None:
    scenes = ("data.scenes_train=8", "data.scenes_val=4")
    folder = cut("scenes", tmp_path / "run", *scenes)
    with pytest.raises(BadInput, match="begun with other data: train: 8 added"):
        run(Path("scenes:1"), folder, f"train.steps={STEPS}", *scenes, resume=True)
    assert run(Path("scenes:0"), folder, f"train.steps={STEPS}", *scenes, resume=True)["finished"]


def test_of_several_roots_each_is_known_by_itself_and_by_its_weight(tmp_path: Path, cut: Callable[..., Path]) -> None:
    first, second = flat(tmp_path / "first"), write_flat(tmp_path / "second", 9, 48)
    folder = cut(f"{first}*2,{second}*1", tmp_path / "run")
    steps = f"train.steps={STEPS}"
    for root, said in (
        (f"{first}*1,{second}*1", "train 1: the same images in another order, or with other classes or weights"),
        (f"{first},{second}", "train 1: the same images"),
        (f"{second}*2,{first}*1", r"train 1: 3 removed"),
        (f"{first}", "train 1: 12 no longer there"),
    ):
        with pytest.raises(BadInput, match=said):
            run(Path(root), folder, steps, resume=True)
    first.rename(tmp_path / "elsewhere")
    assert run(Path(f"{tmp_path / 'elsewhere'}*2,{second}*1"), folder, steps, resume=True)["finished"]


def test_a_run_of_an_earlier_version_goes_on_and_says_what_is_not_known(
    tmp_path: Path, cut: Callable[..., Path], call: Call
) -> None:
    root = flat(tmp_path / "data")
    folder = cut(root, tmp_path / "run")
    for name in ("data.json", "data.npz"):
        (folder / name).unlink()
    shutil.copytree(root, tmp_path / "copy")
    status, _, errors = call("train", "demo", "--out", folder, "--resume", f"data.root={tmp_path / 'copy'}")
    assert status == 2 and "--resume with changed keys: data.root" in errors
    status, output, errors = call("train", "demo", "--out", folder, "--resume")
    assert status == 0, errors
    assert output.count(f"which data {folder} was begun with is not known") == 1


def test_an_image_that_cannot_be_read_counts_once_wherever_it_lies() -> None:
    said = ["/old/a/x.png: torn", "/old/b/shards/1.tar:y.png: torn", "/older/z.png: torn"]
    assert moved(said, "/old/a*2,/old/b/shards", "/new/a*2,/else") == [
        "/new/a/x.png: torn",
        "/else/1.tar:y.png: torn",
        "/older/z.png: torn",
    ]
    assert moved(["/old/one.tar:y.png: torn"], "/old/one.tar", "/new/one.tar") == ["/new/one.tar:y.png: torn"]


def test_of_many_images_numbers_alone_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "KEPT", 11)
    root = flat(tmp_path / "data")
    data = tiny(root).data
    contents.write_contents(tmp_path, contents_of({"train": open_source(data, "train")}))
    assert changes(tmp_path, contents_of({"train": open_source(data, "train")})) == ""
    (root / "0000.png").unlink()
    said = "train: not the same: 12 before and 11 now"
    assert changes(tmp_path, contents_of({"train": open_source(data, "train")})) == said
    assert read_contents(tmp_path / "nowhere") is None and changes(tmp_path / "nowhere", {}) is None


def test_a_file_system_that_lets_us_wait_is_asked_by_threads_with_the_same_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pairs(tmp_path / "pairs")
    found = stamps_of(open_source(tiny(root).data, "train"))
    assert found[:, 0].tolist() == [file.stat().st_size for file in sorted((root / "train/rgb").iterdir())]
    assert found[:, 1].tolist() == [file.stat().st_size for file in sorted((root / "train/depth").iterdir())]
    monkeypatch.setattr(contents, "_WAITING", -1.0)
    monkeypatch.setattr(contents, "_TOGETHER", 5)
    assert np.array_equal(found, stamps_of(open_source(tiny(root).data, "train")))


@pytest.mark.slow
def test_a_cache_of_images_that_were_replaced_is_refused_by_runs_and_by_teach(
    tmp_path: Path, cut: Callable[..., Path]
) -> None:
    pytest.importorskip("diffusers", reason="the compact teacher needs the extra `teachers`")
    root, cache = flat(tmp_path / "data"), tmp_path / "cache"
    teach(tiny(root, *TAUGHT), cache, say=lambda _: None)
    settings = (*TAUGHT, f"guidance.cache={cache}", f"train.steps={STEPS}")
    folder = cut(root, tmp_path / "run", *settings)

    # What is only moved is the same: the images, and the latents.
    shutil.copytree(root, tmp_path / "copy")
    shutil.copytree(cache, tmp_path / "copied")
    shutil.copytree(folder, tmp_path / "on")
    teach(tiny(tmp_path / "copy", *TAUGHT), cache, say=lambda _: None)
    there = (*TAUGHT, f"guidance.cache={tmp_path / 'copied'}", f"train.steps={STEPS}")
    assert run(tmp_path / "copy", tmp_path / "on", *there, resume=True)["finished"]

    # Other latents of the same images are other data.
    parts = np.fromfile(tmp_path / "copied/parts.bin", dtype=np.uint64)
    (parts + 2).tofile(tmp_path / "copied/parts.bin")
    with pytest.raises(BadInput, match="begun with other data: latents: not the same;"):
        run(root, folder, *there, resume=True)

    replaced(root / "0003.png")
    said = r"was made of other images: 1 of 12 have another size now \(0003.png\)"
    with pytest.raises(BadInput, match=said):
        run(root, tmp_path / "new", *settings)
    assert not (tmp_path / "new").exists()
    with pytest.raises(BadInput, match=said):
        teach(tiny(root, *TAUGHT), cache, say=lambda _: None)
    (root / "0003.png").rename(root / "new.png")
    with pytest.raises(BadInput, match=r"1 added \(new.png\), 1 removed; choose another folder"):
        teach(tiny(root, *TAUGHT), cache, say=lambda _: None)


@pytest.mark.slow
def test_weights_of_a_teacher_may_move_and_are_not_replaced(tmp_path: Path, cut: Callable[..., Path]) -> None:
    pytest.importorskip("diffusers", reason="the compact teacher needs the extra `teachers`")
    root, steps = flat(tmp_path / "data"), f"train.steps={STEPS}"
    checkpoint, vae = tiny_teacher.files()
    copy = shutil.copy(checkpoint, tmp_path / "teacher.ckpt")
    teacher = ("guidance.kind=feature", "guidance.teacher=depthfm", f"guidance.teacher_vae={vae}")
    folder = cut(root, tmp_path / "run", *teacher, f"guidance.teacher_checkpoint={copy}")
    content = torch.load(copy, weights_only=True)
    first = next(iter(content["state_dict"].values()))
    first += 0.01
    torch.save(content, copy)
    with pytest.raises(BadInput, match="begun with other data: teacher: not the same;"):
        run(root, folder, *teacher, f"guidance.teacher_checkpoint={copy}", steps, resume=True)
    elsewhere = f"guidance.teacher_checkpoint={checkpoint}"
    assert run(root, folder, *teacher, elsewhere, steps, resume=True)["finished"]


def test_a_cache_of_an_earlier_version_is_read_with_a_word(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the compact teacher needs the extra `teachers`")
    root, cache, said = flat(tmp_path / "data"), tmp_path / "cache", list[str]()
    teach(tiny(root, *TAUGHT), cache, say=lambda _: None)
    (cache / "stamps.bin").unlink()
    replaced(root / "0003.png")
    teach(tiny(root, *TAUGHT), cache, say=said.append)
    training.train(tiny(root, *TAUGHT, f"guidance.cache={cache}", "train.steps=1"), tmp_path / "run", say=said.append)
    assert sum(f"of which files the cache {cache} was made is not known" in line for line in said) == 2


def test_a_study_goes_on_with_moved_data_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depthjepa.study.running._run_all", lambda *_: (each for each in ()))
    (tmp_path / "base.yaml").write_text("{}")
    root = flat(tmp_path / "data")
    arms = {"one": (f"data.root={root}",), "two": ("data.root=scenes", "data.scenes_train=8", "data.scenes_val=4")}
    settings = (*SETTINGS, "train.steps=1")
    asked = Study(base=str(tmp_path / "base.yaml"), arms=arms, seeds=(0,), settings=settings)
    run_study(asked, tmp_path / "study", say=lambda _: None)
    told = json.loads((tmp_path / "study/data.json").read_text())
    assert {name: each["images"] for name, each in told.items()} == {
        "one: train": 12,
        "one: val": 12,
        "two: train": 8,
        "two: val": 4,
    }
    root.rename(tmp_path / "moved")
    there = replace(asked, arms=arms | {"one": (f"data.root={tmp_path / 'moved'}",)})
    run_study(there, tmp_path / "study", resume=True, say=lambda _: None)
    save(tmp_path / "moved/new.png", picture(5))
    with pytest.raises(BadInput, match=r"begun with other data: one: train: 1 added \(new.png\); one: val: 1 added"):
        run_study(there, tmp_path / "study", resume=True, say=lambda _: None)
    for name in ("data.json", "data.npz"):
        (tmp_path / "study" / name).unlink()
    said: list[str] = []
    run_study(there, tmp_path / "study", resume=True, say=said.append)
    assert any("is not known" in line for line in said)


def test_a_fit_goes_on_with_moved_data_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers", reason="a fit needs the extra `teachers`")

    class Reached(Exception):
        """The fit would begin."""

    def reached(*_: Any) -> None:
        raise Reached

    monkeypatch.setattr(fitting, "_fit_autoencoder", reached)
    root, folder = write_pairs(tmp_path / "pairs"), tmp_path / "fit"
    settings = ("data.image_size=32", "fit.autoencoder_widths=[8, 8, 8, 8]", "fit.width=32", "fit.multiples=[1]")

    def begin(root: Path) -> None:
        config = build_fit({}, [f"data.root={root}", *settings, "fit.heads=2"])
        fitting.fit_teacher(config, folder, say=lambda _: None)

    with pytest.raises(Reached):
        begin(root)
    root.rename(tmp_path / "moved")
    with pytest.raises(Reached):
        begin(tmp_path / "moved")
    replaced(tmp_path / "moved/train/rgb/0002.png")
    with pytest.raises(BadInput, match=r"begun with other data: train: 1 changed \(train/rgb/0002.png\)"):
        begin(tmp_path / "moved")
