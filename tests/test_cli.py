"""The command line: the whole way on folders of images, and one clear line for whatever the user gets wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.numpy import load_file

import depthjepa
from depthjepa import cost
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.reading import load_config
from depthjepa.config.recipe_files import families, recipe_names
from depthjepa.drawing import panels, token_figures
from depthjepa.evaluation import probes
from depthjepa.evaluation.probes import table
from depthjepa.evaluation.readout import DepthReadout
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import RunFolder
from depthjepa.runs import stored_alike
from tiny_images import millimetres, picture, save, write_classes, write_flat, write_pairs
from tiny_runs import GUIDED, SETTINGS, Call, recipes_by_choice, run, start


@pytest.fixture(autouse=True)
def quick_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with RGB-D data in `pairs` and a guided run on them in `run`."""
    place = tmp_path_factory.mktemp("finished")
    write_pairs(place / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        run(place / "pairs", place / "run", *GUIDED, "train.steps=3", "evaluation.pictures=3")
    return place


# what the user gets wrong


def bare(place: Path) -> Path:
    place.mkdir()
    return place


def class_without_images(place: Path) -> Path:
    write_classes(place, images=2)
    (place / "train" / "green").mkdir()
    return place


def unpaired(place: Path) -> Path:
    (write_pairs(place) / "train" / "depth" / "0003.png").unlink()
    return place


def depth_of_another_size(place: Path) -> Path:
    save(write_pairs(place) / "train" / "depth" / "0003.png", millimetres(3, 28, 36))
    return place


def depth_of_8_bits(place: Path) -> Path:
    save(write_pairs(place) / "train" / "depth" / "0003.png", (millimetres(3) // 256).astype(np.uint8))
    return place


@pytest.mark.parametrize(
    ("recipe", "make", "settings", "culprit"),
    [
        ("photos", bare, (), r"faulty holds no images \(accepted: .jpg"),
        ("photos", lambda place: place, (), r"data\.root: there is no folder .*faulty"),
        ("photos", class_without_images, (), r"class 'green' has no images in .*faulty/train"),
        ("photos", lambda place: save(place, picture(0)), (), r"faulty\.png is a file, not a folder"),
        ("rgbd", unpaired, (), r"1 of 24 photographs have no depth: 0003"),
        ("rgbd", depth_of_another_size, (), r"depth/0003\.png is 28 x 36 pixels .* 0003\.png is 56 x 72"),
        ("rgbd", depth_of_8_bits, (), r"depth/0003\.png is PNG of mode L; depth must be a grey PNG of 16 bits"),
        ("rgbd", lambda place: write_flat(place, 9), (), r"needs depth, but data\.root=.*faulty.* has none"),
        ("photos", write_pairs, ("model.widht=64",), r"unknown key 'model\.widht' \(did you mean 'model\.width'\?\)"),
        ("photos", write_pairs, ("trian.steps=64",), r"unknown key 'trian\.steps' \(did you mean 'train\.steps'\?\)"),
        ("photos", write_pairs, ("seed",), r"'seed' is not of the form key=value"),
        (
            "photos",
            write_pairs,
            ("train.precision=fp-32",),
            r"train\.precision='fp-32': .*did you mean 'fp32'",
        ),
        ("photos", write_pairs, ("train.batch_size=x",), r"train\.batch_size='x': should be a valid integer"),
        ("photos", write_pairs, ("model.patch_size=7",), r"model\.patch_size=7 does not divide .* is 49 x 49"),
        ("photos", write_pairs, ("model.heads=3",), r"model\.width=32 must be a multiple of 4 and of model\.heads=3"),
        ("photos", write_pairs, ("train.epochs=2", "train.steps=2"), r"give one of train\.epochs and train\.steps"),
        ("photos", write_pairs, ("train.accumulate=3",), r"train\.batch_size=8 must be a multiple of .* take 9"),
        ("photos", write_pairs, ("masks.target_scale=[0.01, 0.02]",), r"gives targets below masks\.min_keep=4"),
        ("photos", write_pairs, ("train.device=cuda:77x",), r"device 'cuda:77x'"),
        ("photoz", bare, (), r"there is no recipe 'photoz' \(did you mean 'photos'\?\)"),
        ("nowhere/photos.yaml", bare, (), r"there is no recipe file nowhere/photos\.yaml"),
    ],
)
def test_a_run_that_cannot_begin_says_why_in_one_line(
    tmp_path: Path, call: Call, recipe: str, make: Callable[[Path], Path], settings: tuple[str, ...], culprit: str
) -> None:
    name = "faulty.png" if "is a file" in culprit else "faulty"
    root = make(tmp_path / name)
    length = () if any("steps" in setting for setting in settings) else ("train.steps=2", "train.epochs=null")
    given = {text.partition("=")[0]: text for text in (f"data.root={root}", *SETTINGS, *length, *settings)}
    status, _, errors = call("train", recipe, *given.values(), "--out", tmp_path / "run")
    one_line(status, errors, culprit)
    assert not (tmp_path / "run").exists()


def one_line(status: int, errors: str, culprit: str) -> None:
    assert status == 2
    assert errors.startswith("depthjepa: ")
    assert errors.count("\n") == 1 and errors.endswith("\n")
    assert re.search(culprit, errors)


def test_all_faults_of_a_configuration_are_reported_at_once(call: Call) -> None:
    status, _, errors = call("train", "photos", "sede=1", "optim.lrr=1", "data.flp=true")
    one_line(status, errors, r"'sede' \(did you mean 'seed'\?\); .*'data\.flp'|'data\.flp'.*'sede'")
    assert "'optim.lrr' (did you mean 'optim.lr'?)" in errors


def test_commands_on_a_run_name_the_culprit_in_one_line(finished: Path, tmp_path: Path, call: Call) -> None:
    content = torch.load(finished / "run" / "checkpoints" / "last.pt", weights_only=True)
    content["config"]["model"]["width"] = 48
    torch.save(content, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    flat, trained, root = write_flat(tmp_path / "flat", 3), finished / "run", f"data.root={finished / 'pairs'}"
    commands = [
        (("probe", tmp_path / "other.pt", "depth"), r"other\.pt does not fit the model: .*\(32,.*expected \(48,"),
        (("probe", tmp_path / "text.pt", "depth"), r"text\.pt is a text file, not a checkpoint"),
        (("probe", tmp_path / "nowhere", "depth"), r"there is no checkpoint .*nowhere"),
        (("probe", tmp_path, "depth"), r"holds no checkpoint"),
        (
            ("probe", trained, "dept"),
            rf"no probe 'dept' \(did you mean 'depth'\?\): choose from {', '.join(table.of_command('probe'))}$",
        ),
        (("probe", trained, "knn"), r"needs labels, and .*pairs has none"),
        (("probe", trained, "depth", "--data", flat), r"needs depth, and .*flat has none"),
        (("probe", trained, "depth", "--data", tmp_path / "gone"), r"there is no folder .*gone"),
        (("probe", trained, "depth", "model.width=64"), r"model\.\* belongs to the checkpoint"),
        (("diagnose", trained, "evaluation.wich=context"), r"did you mean 'evaluation\.which'"),
        (("embed", trained, flat, "--out", tmp_path / "a.csv"), r"embeddings are written as \.npz, \.parquet"),
        (("embed", trained, bare(tmp_path / "bare"), "--out", tmp_path / "a.npz"), r"bare holds no images"),
        (("predict", trained, flat, "--out", tmp_path / "maps"), r"fit a depth readout first with `depthjepa probe"),
        (("show", "mask", "rgbd", "--out", tmp_path / "a.png"), r"no picture 'mask' \(did you mean 'masks'\?\)"),
        (("show", "depth", trained, "--out", tmp_path / "a.png"), r"depth\.npz is not there: run `depthjepa probe"),
        (("show", "gates", trained, "--out", tmp_path / "a.png"), r"gates\.json is not there: run `depthjepa diagnose"),
        (
            ("show", "features", trained, "--no-photographs", "--out", tmp_path / "a.png"),
            r"for depth, .*: features is",
        ),
        (("show", "features", tmp_path / "gone", "--out", tmp_path / "a.png"), r"there is no checkpoint .*gone"),
        (("recipes", "dem"), r"there is no recipe 'dem' \(did you mean 'demo'\?\)"),
        (("report", tmp_path / "flat", "--out", tmp_path / "a.html"), r"flat is not a run folder"),
        (("train", "rgbd", "--out", trained, root), r"holds a run already"),
        (("train", "rgbd", "--resume", "--out", trained, root, "model.width=48"), r"changed keys: model\.width;"),
    ]
    for arguments, culprit in commands:
        status, _, errors = call(*arguments)
        one_line(status, errors, culprit)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["bare", "flat", "other.pt", "text.pt"]


@pytest.mark.parametrize(
    "arguments", [("trian", "demo"), ("train",), ("train", "demo", "--outt", "x"), ("report", "x"), ()]
)
def test_wrong_usage_ends_with_2_and_no_traceback(call: Call, arguments: tuple[str, ...]) -> None:
    status, output, errors = call(*arguments)
    assert status == 2
    assert "Usage: " in output + errors or "(did you mean 'train'?): choose from demo, train" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_faults_end_the_real_process_in_the_same_way(tmp_path: Path) -> None:
    process = start("train", "photos", f"data.root={tmp_path / 'gone'}", cwd=tmp_path)
    output, errors = process.communicate(timeout=60)
    one_line(process.returncode, errors, r"there is no folder .*gone")
    assert output == ""
    assert list(tmp_path.iterdir()) == []


# what is loaded


def test_the_version_is_told_without_loading_anything_heavy() -> None:
    import depthjepa

    script = "import sys; sys.argv = ['depthjepa', '--version']; import depthjepa.cli; depthjepa.cli.main()"
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"depthjepa {depthjepa.__version__}\n"
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "typer" in loaded and not loaded & {"torch", "numpy", "matplotlib", "pydantic", "scipy"}


@pytest.mark.parametrize("code", ["import depthjepa", "depthjepa.cli.main()"])
def test_importing_the_package_and_asking_for_help_load_neither_torch_nor_numpy(code: str) -> None:
    script = f"""
import sys
sys.argv = ["depthjepa", "--help"]
import depthjepa, depthjepa.cli
try:
    {code}
except SystemExit as end:
    assert not end.code
heavy = {{"torch", "numpy", "matplotlib", "pydantic", "scipy"}}
sys.exit(f"loaded: {{heavy & set(sys.modules)}}" if heavy & set(sys.modules) else 0)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert ("Usage: depthjepa" in found.stdout) == ("main" in code)


def test_the_names_of_the_package_are_its_functions_whatever_was_imported_before() -> None:
    import depthjepa.training

    assert depthjepa.train is depthjepa.training.train
    for name in ("load_config", "load_encoder", "train"):
        assert callable(getattr(depthjepa, name))
    with pytest.raises(AttributeError, match="load_encodre"):
        _ = depthjepa.load_encodre


# the whole way


def write_photographs(root: Path) -> Path:
    """Photographs of many kinds: square, nested, grey, lying on its side; and one that is torn."""
    save(root / "square.png", picture(1, 48, 48))
    save(root / "deep" / "er" / "wide.jpg", picture(2, 40, 90))
    save(root / "grey.png", picture(3, 60, 44)[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(4, 50, 70)).save(root / "turned.jpg", exif=exif)
    (root / "torn.png").write_bytes(b"torn")
    return root


SIZES = {"deep/er/wide": (90, 40), "grey": (44, 60), "square": (48, 48), "turned": (50, 70)}  # width, height


def test_the_way_from_an_rgbd_folder_to_depth_of_one_s_own_photographs(tmp_path: Path, call: Call) -> None:
    def succeed(*arguments: str | Path) -> str:
        status, output, errors = call(*arguments)
        assert status == 0
        if photographs in arguments:
            assert (
                errors
                == f"1 unreadable, left out: {photographs / 'torn.png'}: it is no image, or of an unknown format\n"
            )
        else:  # what a depth probe has seen of depth
            assert all(line.startswith("depth of ") for line in errors.splitlines()), errors
        return output

    pairs, photographs = write_pairs(tmp_path / "pairs"), write_photographs(tmp_path / "photographs")
    trained, data = tmp_path / "run", f"data.root={pairs}"
    output = succeed("train", "rgbd", data, *SETTINGS, "train.steps=4", "evaluation.pictures=3", "--out", trained)
    assert "estimate: 4 steps of 8 images" in output
    assert f"{trained}: 4 steps, loss " in output.replace("\n", "")

    output = succeed("probe", trained, "depth", "--out", tmp_path / "depth.json")
    written = (tmp_path / "depth.json").read_text()
    assert (trained / "probes" / "depth.json").read_text() == written
    rows = {row["name"]: row for row in json.loads(written)["rows"]}
    assert [*rows] == ["mean map", "scene map", "raw patches", "random encoder", "rgbd"]
    assert rows["mean map"]["r2_within"] == pytest.approx(0, abs=1e-6)
    # These pairs are of no known scene.
    assert all(value is None for key, value in rows["scene map"].items() if key != "name")
    assert all(name in output for name in rows)

    output = succeed("diagnose", trained, "--out", tmp_path / "diagnose.json")
    assert "RankMe" in output
    assert {row["name"] for row in json.loads((tmp_path / "diagnose.json").read_text())["rows"]} == {
        "random encoder",
        "rgbd",
    }

    status, output, errors = call("predict", trained, photographs, "--out", tmp_path / "maps")
    own, guess = rows["rgbd"], rows["mean map"]
    worse = own["r2_within"] <= 0 or own["absrel"] >= guess["absrel"]
    assert status == 0 and worse == ("the depth readout is no better than the mean map" in errors)
    assert output == f"{tmp_path / 'maps'}: 4 depth maps\n" and "torn.png" in errors
    for name, size in SIZES.items():
        depth, colour = (Image.open(tmp_path / "maps" / f"{name}.{kind}.png") for kind in ("depth", "colour"))
        assert (depth.mode, depth.size) == ("I;16", size)
        assert (colour.mode, colour.size) == ("RGB", size)
        # The readout stays within what it was fitted on: the depth files lie between 1.5 and 4.7 m.
        assert 1000 < np.array(depth).min() <= np.array(depth).max() < 6000

    embeddings, paths = embedded(succeed, trained, photographs, tmp_path)
    assert paths == ["deep/er/wide.jpg", "grey.png", "square.png", "turned.jpg"]
    encoder = depthjepa.load_encoder(trained)
    square = torch.from_numpy(picture(1, 48, 48)).permute(2, 0, 1)[None] / 255
    expected = encoder(encoder.normalise(square)).mean(1)[0].numpy()
    np.testing.assert_allclose(embeddings[2], expected, rtol=1e-4, atol=1e-5)

    for what, source, settings in (
        ("masks", "rgbd", (data, *SETTINGS)),
        ("batch", "rgbd", (data, *SETTINGS)),
        ("features", trained, ()),
        ("depth", trained, ()),
    ):
        succeed("show", what, source, *settings, "--out", tmp_path / "shown" / f"{what}.png")
        with Image.open(tmp_path / "shown" / f"{what}.png") as drawn:
            assert min(drawn.size) > 100
    succeed("report", trained, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "RankMe" in page
    assert not re.search(r"""(src|href)=["']http""", page)


@pytest.fixture
def probed(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with a depth readout."""
    folder = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    saved = load_checkpoint(folder)
    config = saved.config
    result = probes.probe("depth", config, saved.encoder(config.evaluation.which), torch.device("cpu"))
    assert result.readout is not None
    RunFolder(folder).save_arrays("probes/depth", result.arrays)
    result.readout.save(folder / "probes" / "depth.safetensors")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_predict_overwrites_neither_photographs_nor_its_own_maps(probed: Path, tmp_path: Path, call: Call) -> None:
    place = tmp_path / "mine"
    photographs = place / "photographs"
    save(photographs / "deep" / "a.jpg", picture(1, 48, 48))
    save(photographs / "a.b.png", picture(2, 48, 48))
    before = content(place)
    for out in (photographs, photographs / "deep", photographs / ".." / "photographs" / "maps"):
        status, _, errors = call("predict", probed, photographs, "--out", out)
        one_line(status, errors, r"--out .* lies in the folder of the photographs, .*: give a folder outside it")
    twins = save(photographs / "deep" / "a.PNG", picture(3, 48, 48))
    status, _, errors = call("predict", probed, photographs, "--out", place)
    one_line(status, errors, r"the depth of deep/a\.PNG and of deep/a\.jpg would both be .*deep/a\.depth\.png")
    twins.unlink()
    held = save(photographs / "maps" / "held.png", picture(3, 48, 48))
    (photographs / "deep" / "seen.png").symlink_to(save(place / "deep" / "a.depth.png", picture(4, 48, 48)))
    status, _, errors = call("predict", probed, photographs, "--out", place)
    one_line(status, errors, r"deep/a\.depth\.png is one of the photographs")
    for extra in (held, photographs / "deep" / "seen.png", place / "deep" / "a.depth.png"):
        extra.unlink()
    assert content(place) == before
    assert call("predict", probed, photographs, "--out", place)[0] == 0
    after = content(place)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {
        f"{name}.{kind}.png" for name in ("deep/a", "a.b") for kind in ("depth", "colour")
    }


def test_predict_refuses_a_readout_of_other_weights(probed: Path, tmp_path: Path, call: Call) -> None:
    file, flat = probed / "probes" / "depth.safetensors", write_flat(tmp_path / "flat", 1, 48)
    readout = DepthReadout.load(file)
    predict = ("predict", probed, flat, "--out", tmp_path / "maps")
    for origin, culprit in (
        ({"step": "2", "which": "target", "data": "my pairs"}, r"fitted on the target encoder of step 2, and this is "),
        ({"step": "3", "which": "context", "data": "my pairs"}, r"fitted on the context encoder of step 3"),
    ):
        readout.save(file, origin)
        status, _, errors = call(*predict)
        again = r"`depthjepa probe \S+last\.pt depth --data 'my pairs' evaluation\.which=target`"
        one_line(status, errors, f"{culprit}.*{again}")
    assert not (tmp_path / "maps").exists()
    readout.save(file, {"step": "3", "which": "target", "data": "my pairs"})
    assert call(*predict)[0] == 0
    readout.save(file, {"step": "3", "which": "context"})
    assert call(*predict, "evaluation.which=context", "--force")[0] == 0


def test_an_out_that_cannot_be_written_is_named_in_one_line(probed: Path, tmp_path: Path, call: Call) -> None:
    flat = write_flat(tmp_path / "flat", 1, 48)
    file = tmp_path / "file"
    file.write_text("mine")
    obstacle = r"cannot be written: \S*file is a file, not a folder"
    for command in (
        ("embed", probed, flat, "--out", file / "a.npz"),
        ("embed", probed, flat, "--out", file / "deep" / "a.parquet"),
        ("embed", probed, flat, "--out", file / "deep" / "a.safetensors"),
        ("predict", probed, flat, "--out", file),
        ("predict", probed, flat, "--out", file / "deep"),
        ("report", probed, "--out", file / "a.html"),
    ):
        status, _, errors = call(*command)
        one_line(status, errors, obstacle)
    with pytest.raises(BadInput, match=obstacle):
        panels.save_figure(Figure(), file / "deep" / "a.png")
    (tmp_path / "folder.npz").mkdir()
    status, _, errors = call("embed", probed, flat, "--out", tmp_path / "folder.npz")
    one_line(status, errors, r"folder\.npz cannot be written: Is a directory")
    with pytest.raises(BadInput, match=obstacle):
        RunFolder(file).begin({}, {})
    with pytest.raises(BadInput, match="cannot be written: File name too long"):
        RunFolder(tmp_path).save_arrays("a" * 300, {})
    assert file.read_text() == "mine"
    assert list(tmp_path.rglob("*.partial")) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_arrays_that_cannot_be_written_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = RunFolder(tmp_path)
    folder.save_arrays("probes/depth", {"truth": np.ones(3)})
    before = content(tmp_path)

    def refused(_: int) -> None:
        raise OSError(number, "planted")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(RunStopped if number == errno.ENOSPC else OSError):
        folder.save_arrays("probes/depth", {"truth": np.zeros(3)})
    assert content(tmp_path) == before


def test_runs_shown_side_by_side_keep_their_names_and_grids(
    finished: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = finished / "pairs"
    for place, settings in (
        ("one/a", ()),
        ("two/a", ("model.patch_size=12", "masks.min_keep=1")),
        ("b", ("data.image_size=64",)),
    ):
        run(pairs, tmp_path / place, "train.steps=1", *settings)
    seen: dict[str, tuple[int, ...]] = {}

    def feature_pca(images: np.ndarray, tokens: dict[str, np.ndarray]) -> Figure:
        seen.update({name: array.shape[1:] for name, array in tokens.items()})
        return figures_of_tokens(images, tokens)

    figures_of_tokens = token_figures.feature_pca
    monkeypatch.setattr(token_figures, "feature_pca", feature_pca)
    monkeypatch.chdir(tmp_path)
    out = ("--out", tmp_path / "a.png")
    assert call("show", "features", "one/a", "two/a", finished / "run", *out)[0] == 0
    assert seen == {"one/a": (6, 6, 32), "two/a": (4, 4, 32), "run": (6, 6, 32), "random encoder": (6, 6, 32)}
    for command, culprit in (
        (("features", "one/a", "b"), r"images of b are 64 px, and those of one/a 48 px: .* same data\.image_size"),
        (("features", "one/a", tmp_path / "one" / "a"), r"one/a: this run is given twice"),
        (("depth", "one/a", "one/../one/a"), r"one/a: this run is given twice"),
    ):
        status, _, errors = call("show", *command, *out)
        one_line(status, errors, culprit)


def embedded(
    succeed: Callable[..., str], trained: Path, photographs: Path, place: Path
) -> tuple[np.ndarray, list[str]]:
    """Embed into all three formats, check that they say the same, and return it."""
    for suffix in ("npz", "parquet", "safetensors"):
        output = succeed("embed", trained, photographs, "--out", place / f"all.{suffix}")
        assert output == f"{place / 'all'}.{suffix}: 4 embeddings of width 32\n"
    with np.load(place / "all.npz") as stored:
        values, paths = stored["embeddings"], stored["paths"].tolist()
    assert values.shape == (4, 32) and values.dtype == np.float32
    table = pyarrow.parquet.read_table(place / "all.parquet").to_pydict()
    assert table["paths"] == paths
    np.testing.assert_array_equal(np.array(table["embeddings"], dtype=np.float32), values)
    tensors = load_file(place / "all.safetensors")
    assert tensors["paths"].tobytes().decode().split("\n") == paths
    np.testing.assert_array_equal(tensors["embeddings"], values)
    return values, paths


def test_the_way_from_a_class_folder_to_its_accuracies(tmp_path: Path, call: Call) -> None:
    root, trained = write_classes(tmp_path / "classes"), tmp_path / "run"
    length = ("train.steps=2", "train.epochs=null")
    assert call("train", "photos", f"data.root={root}", *SETTINGS, *length, "--out", trained)[0] == 0
    for task, key, settings in (
        ("knn", "val_accuracy_3", ("evaluation.neighbours=3",)),
        ("linear", "val_accuracy", ()),
        ("attentive", "val_accuracy", ()),
    ):
        status, output, _ = call("probe", trained, task, *settings)
        table = json.loads((trained / "probes" / f"{task}.json").read_text())
        rows = {row["name"]: row[key] for row in table["rows"]}
        assert status == 0 and rows.keys() == {"chance", "random encoder", "photos"}
        assert rows["chance"] == 50.0
        assert rows["photos"] > 90  # red against blue
        assert "validation accuracy" in output


@pytest.mark.slow
def test_recipes_are_listed_with_their_price(call: Call) -> None:
    status, output, _ = call("recipes")
    assert status == 0
    assert {"demo", "photos", "rgbd"} <= set(recipe_names())
    members = {name for names in families().values() for name in names}
    assert len(members) == 48 and not any(name in output for name in members)  # a line for each family instead
    assert all(output.count(f"{family} ") == 1 for family in families())
    for name in [*set(recipe_names()) - members, *(names[0] for names in families().values())]:
        assert name in output or name in members
        about = load_config(name).about
        assert all(text in output for text in (about.summary, about.hardware, about.time, about.score))


@pytest.mark.parametrize("name", recipes_by_choice())
def test_a_recipe_can_be_printed_and_read_back(tmp_path: Path, call: Call, name: str) -> None:
    _, text, _ = call("recipes", name)
    (tmp_path / f"{name}.yaml").write_text(text)
    assert load_config(tmp_path / f"{name}.yaml") == load_config(name)


def test_pictures_are_of_the_only_data_that_a_task_was_measured_on(tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("a", "b")}
    for place in runs.values():
        (place / "probes").mkdir(parents=True)
        np.savez(place / "probes" / "depth-elsewhere.npz", images=np.zeros(2), value=np.array(place.name == "b"))
    assert [bool(each["value"]) for each in stored_alike(runs, "depth", "images").values()] == [False, True]
    for place in runs.values():
        np.savez(place / "probes" / "depth-third.npz", images=np.zeros(2))
    others = r"\(others there: depth-elsewhere, depth-third\)"
    with pytest.raises(BadInput, match=rf"a/probes/depth\.npz is not there {others}: run"):
        stored_alike(runs, "depth", "images")
    for place in runs.values():
        np.savez(place / "probes" / "depth.npz", images=np.ones(2))
    assert all(each["images"].all() for each in stored_alike(runs, "depth", "images").values())
