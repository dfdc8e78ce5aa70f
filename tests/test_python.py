"""The package from Python: what it shows of itself, and functions that give what the commands write."""

from __future__ import annotations

import doctest
import inspect
import json
import pydoc
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import depthjepa
from depthjepa import cost, runtime
from depthjepa.backbones.table import BACKBONES
from depthjepa.evaluation.probes import running, table
from depthjepa.model.vit import VisionTransformer
from tiny_images import picture, save, write_flat, write_pairs
from tiny_runs import Call, run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on RGB-D pairs, `runs/mine`, and `photographs` of which one is torn."""
    place = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        size = (
            "model.width=24",
            "model.heads=3",
            "predictor.width=24",
        )  # three heads are assumed of a file that does not say how many
        run(write_pairs(place / "pairs"), place / "runs" / "mine", *size, "train.steps=2", "evaluation.pictures=2")
    write_flat(place / "photographs" / "deep", 3, 64)
    save(place / "photographs" / "wide.png", picture(7, 40, 90))
    (place / "photographs" / "torn.png").write_bytes(b"torn")
    return place


# what the package shows of itself


def test_the_names_that_are_shown_are_the_public_ones() -> None:
    assert dir(depthjepa) == sorted(depthjepa.__all__)
    assert all(hasattr(depthjepa, name) for name in dir(depthjepa))


@pytest.mark.parametrize("name", depthjepa.__all__)
def test_a_public_name_says_what_it_is_and_what_it_takes(name: str) -> None:
    public = getattr(depthjepa, name)
    assert len(inspect.getdoc(public) or "") > 40
    if inspect.isfunction(public):
        signature = inspect.signature(public)
        typed = [each.annotation for each in signature.parameters.values()] + [signature.return_annotation]
        assert signature.empty not in typed


HELP = """
import sys, depthjepa
assert "torch" not in sys.modules
help(depthjepa)
help(depthjepa.train)
"""


@pytest.mark.slow
def test_help_shows_functions_that_are_loaded_when_they_are_asked_for() -> None:
    shown = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    package, of_train = shown.split("Help on function train in module depthjepa.training")
    functions = [name for name in depthjepa.__all__ if inspect.isfunction(getattr(depthjepa, name))]
    assert {"embed", "predict", "probe", "train"} < set(functions)
    for name in functions:
        first = (inspect.getdoc(getattr(depthjepa, name)) or "").splitlines()[0]
        assert re.search(rf"^    {name}\(.*\) -> .*\n +{re.escape(first)}$", package, re.MULTILINE), name
    assert "config: 'RunConfig', out: 'str | Path'" in of_train and "becomes a run folder" in of_train


def test_an_encoder_says_what_goes_in_and_what_comes_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its example runs as it stands."""
    monkeypatch.chdir(place)
    encoder = depthjepa.load_encoder("runs/mine")
    top = pydoc.render_doc(encoder, renderer=pydoc.plaintext).partition("Method resolution order")[0]
    assert ">>> encoder = depthjepa.load_encoder" in top and "raster order" in top and "RGB in [0, 1]" in top
    (example,) = doctest.DocTestFinder(recurse=False).find(VisionTransformer, "VisionTransformer", globs={})
    result = doctest.DocTestRunner().run(example)
    assert (result.failed, result.attempted) == (0, len(example.examples)) and result.attempted > 5


# functions that give what the commands write


@pytest.mark.parametrize("settings", [[], ["evaluation.depth_readout=linear", "evaluation.depth_steps=2"]])
def test_probe_returns_the_table_that_the_command_writes(
    place: Path, call: Call, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, written = place / "runs" / "mine", place / "by_command.json"
    monkeypatch.setattr(running, "now", lambda: "2026-01-31T23:59:59+00:00")  # when it was asked for stands in it
    assert call("probe", trained, "depth", *settings, "--out", written)[0] == 0
    kept = {path.name: path.read_bytes() for path in (trained / "probes").iterdir()}
    table = depthjepa.probe(trained, "depth", settings=settings, out=place / "by_function.json")
    assert table == json.loads(written.read_text())
    assert (place / "by_function.json").read_text() == written.read_text()
    assert {"mean map", "random encoder", "tiny"} <= {row["name"] for row in table["rows"]}
    assert kept.keys() == {path.name for path in (trained / "probes").iterdir()}
    assert kept["depth.json"] == (trained / "probes" / "depth.json").read_bytes()


def test_probe_takes_other_data_and_the_other_encoder(place: Path) -> None:
    other = write_pairs(place / "other", 16, 4)
    context = ["evaluation.which=context"]
    table, of_context = (depthjepa.probe(place / "runs/mine", "depth", other, settings=each) for each in ([], context))
    assert table["data"] == str(other)
    assert table["rows"][-1]["r2_within"] != of_context["rows"][-1]["r2_within"]


def test_the_mean_of_an_image_s_patches_is_its_embedding(place: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 unreadable, left out: .*torn\.png: it is no image"):
        paths, embeddings = depthjepa.embed(place / "runs/mine", place / "photographs")
    notes: list[str] = []
    same, patches = depthjepa.embed(
        str(place / "runs/mine"),
        str(place / "photographs"),
        patches=True,
        settings=["evaluation.batch_size=3"],
        say=notes.append,
    )
    assert len(notes) == 1 and "torn.png" in notes[0]
    assert paths == same == ["deep/0000.png", "deep/0001.png", "deep/0002.png", "wide.png"]
    assert embeddings.shape == (4, 24) and patches.shape == (4, 36, 24)
    assert embeddings.dtype == patches.dtype == np.float32
    np.testing.assert_allclose(patches.mean(1), embeddings, rtol=1e-5, atol=1e-6)


def test_patches_are_the_encoder_s_tokens_in_every_format(place: Path, call: Call) -> None:
    save(place / "square" / "one.png", picture(1, 48, 48))
    save(place / "square" / "two.png", picture(2, 48, 48))
    encoder = depthjepa.load_encoder(place / "runs/mine")
    images = torch.stack([torch.from_numpy(picture(number, 48, 48)).permute(2, 0, 1) for number in (1, 2)]) / 255
    with torch.no_grad():
        expected = encoder(encoder.normalise(images)).numpy()
    for suffix in ("npz", "safetensors", "parquet"):
        out = place / f"patches.{suffix}"
        status, output, errors = call("embed", place / "runs/mine", place / "square", "--patches", "--out", out)
        assert (status, output, errors) == (0, f"{out}: 2 embeddings of 36 patches each of width 24\n", "")
    with np.load(place / "patches.npz") as stored:
        assert stored["grid"].tolist() == [6, 6] and stored["paths"].tolist() == ["one.png", "two.png"]
        values = stored["embeddings"]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    tensors = load_file(place / "patches.safetensors")
    assert tensors["grid"].tolist() == [6, 6] and tensors["paths"].tobytes() == b"one.png\ntwo.png"
    np.testing.assert_array_equal(tensors["embeddings"], values)
    table = pyarrow.parquet.read_table(place / "patches.parquet")
    shape, grid = (json.loads(table.schema.metadata[key]) for key in (b"shape", b"grid"))
    assert (shape, grid) == ([36, 24], [6, 6]) and table["paths"].to_pylist() == ["one.png", "two.png"]
    np.testing.assert_array_equal(np.stack(table["embeddings"].to_numpy()).reshape(-1, *shape), values)


def test_a_parquet_file_of_many_rows_is_read_in_parts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import depthjepa.commands.embed as embedding

    monkeypatch.setattr(embedding, "ROW_GROUP", 2 * 24 * 4)  # two images
    write_flat(place / "five", 5, 48)
    _, embeddings = depthjepa.embed(place / "runs/mine", place / "five", place / "five.parquet")
    file = pyarrow.parquet.ParquetFile(place / "five.parquet")
    assert file.num_row_groups == 3
    np.testing.assert_array_equal(np.stack(file.read()["embeddings"].to_numpy()), embeddings)


def test_embeddings_beyond_the_memory_are_refused_before_any_is_computed(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "machine_bytes", lambda: 5 * 36 * 24 * 4 - 1)
    command = ("embed", place / "runs/mine", place / "photographs", "--out", place / "large.npz")
    status, _, errors = call(*command, "--patches")
    assert status == 2 and errors.count("\n") == 1
    assert re.search(
        r"photographs: 5 x 36 x 24 numbers \(images x patches x width\) take .* the memory here is", errors
    )
    assert not (place / "large.npz").exists()
    assert call(*command)[0] == 0


def test_the_memory_is_the_machine_s_at_most() -> None:
    """Beside what Linux says of it in another place."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        pytest.skip("no Linux")
    total = int(re.findall(r"MemTotal: +(\d+) kB", meminfo.read_text())[0]) * 1024
    assert 2**26 < runtime.machine_bytes() <= total


def test_predict_writes_the_maps_that_the_command_writes(place: Path, call: Call) -> None:
    trained, photographs = place / "runs/mine", place / "photographs"
    depthjepa.probe(trained, "depth")
    with pytest.warns(UserWarning, match=r"1 unreadable, left out: .*torn\.png"):
        assert depthjepa.predict(trained, photographs, place / "maps") == 4
    assert call("predict", trained, photographs, "--out", place / "by_command")[0] == 0
    maps = sorted(path.relative_to(place / "maps") for path in (place / "maps").rglob("*.png"))
    assert len(maps) == 8
    for each in maps:
        assert (place / "maps" / each).read_bytes() == (place / "by_command" / each).read_bytes()
    with Image.open(place / "maps" / "wide.depth.png") as depth:
        assert (depth.mode, depth.size) == ("I;16", (90, 40))


# what a program gets wrong

PROBES = table.of_command("probe")
FAMILIES = "; ".join(row.about for row in BACKBONES.rows)
WRONG = {
    "depthjepa.probe(RUN, 'dept')": rf"no probe 'dept' \(did you mean 'depth'\?\): choose from {', '.join(PROBES)}$",
    "depthjepa.probe(RUN, 'depth', 'pair')": r"there is no folder pair \(did you mean 'pairs'\?\)",
    "depthjepa.probe(RUN, 'depth', '')": r"data\.root is empty: say which data",
    "depthjepa.probe(RUN, 'knn')": r"the knn probe needs labels, and .*pairs has none",
    "depthjepa.probe('', 'depth')": rf"the backbone is an empty path: give {re.escape(FAMILIES)}$",
    "depthjepa.probe('gone.pt', 'depth')": r"there is no checkpoint gone\.pt",
    "depthjepa.probe(ENCODER, 'depth')": r"opened by its path or name, not from a VisionTransformer",
    "depthjepa.probe(RUN, 'depth', settings='seed=1')": r"are a list of KEY=VALUE, as \['seed=1'\], and not 'seed=1'$",
    "depthjepa.probe(RUN, 'depth', settings={'seed': 1})": r"are a list of KEY=VALUE, as .*, and not {'seed': 1}",
    "depthjepa.probe(RUN, 'depth', settings=[7])": r"are a list of KEY=VALUE, as .*, and not \[7\]",
    "depthjepa.probe(RUN, 'depth', settings=None)": r"are a list of KEY=VALUE, as .*, and not None",
    "depthjepa.probe(RUN, 'depth', settings=['seed'])": r"'seed' is not of the form key=value",
    "depthjepa.probe(RUN, 'depth', settings=['seed=1', 'seed=2'])": r"seed: given more than once",
    "depthjepa.probe(RUN, 'depth', settings=['evaluation.wich=context'])": r"did you mean 'evaluation\.which'",
    "depthjepa.embed(RUN, 'photograph')": r"there is no folder photograph \(did you mean 'photographs'\?\)",
    "depthjepa.embed(RUN, '')": r"the folder of images is an empty path",
    "depthjepa.embed(RUN, 'photographs', 'a.csv')": r"a\.csv: embeddings are written as \.npz, \.parquet",
    "depthjepa.embed(RUN, 'photographs', settings=['evaluation.neighbours=3'])": r"no effect on embeddings",
    "depthjepa.embed(RUN, 'photographs', settings=['data.root=pairs'])": r"pairs, but photographs is given as the data",
    "depthjepa.embed(RUN, 'photographs', '')": r"out is an empty path",
    "depthjepa.predict(RUN, 'photographs', '')": r"out is an empty path",
    "depthjepa.probe(RUN, 'depth', out='')": r"out is an empty path",
    "depthjepa.predict(RUN, 'gone', 'maps')": r"there is no folder gone",
    "depthjepa.load_encoder(RUN, 'targt')": r"there is no encoder 'targt' \(did you mean 'target'\?\)",
    "depthjepa.load_encoder(RUN, settings='model.heads=3')": r"as \['model\.heads=3'\]",
    "depthjepa.load_config('demo', 'train.steps=1')": r"as \['train\.steps=1'\]",
}
TRY = """
import depthjepa
RUN = "run"
ENCODER = depthjepa.load_encoder(RUN)
for call in {calls!r}:
    try:
        eval(call)
    except depthjepa.BadInput as fault:
        print(fault)
"""


def test_wrong_input_from_python_is_answered_in_one_line(place: Path, tmp_path: Path) -> None:
    """In a process of its own: while tests run, the types in signatures answer first."""
    for name, target in (("run", "runs/mine"), ("pairs", "pairs"), ("photographs", "photographs")):
        (tmp_path / name).symlink_to(place / target)
    before = sorted(place.rglob("*"))
    code = TRY.format(calls=list(WRONG))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for line, (wrong, said) in zip(ended.stdout.splitlines(), WRONG.items(), strict=True):
        assert re.search(said, line), f"{wrong}: {line}"
    assert sorted(place.rglob("*")) == before and len(list(tmp_path.iterdir())) == 3


def test_what_is_assumed_of_a_foreign_file_is_a_warning(place: Path) -> None:
    encoder = depthjepa.load_encoder(place / "runs/mine")
    bare = {f"module.{key}": value for key, value in encoder.state_dict().items()}
    torch.save({"encoder": bare}, place / "bare.pth.tar")
    with pytest.warns(UserWarning, match=r"bare\.pth\.tar: assumed "):
        paths, embeddings = depthjepa.embed(place / "bare.pth.tar", place / "photographs" / "deep")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told: list[str] = []
        depthjepa.embed(place / "bare.pth.tar", place / "photographs" / "deep", say=told.append)
    assert any("; taken: " in each for each in told) and any(": assumed " in each for each in told)
    assert len(paths) == len(embeddings) == 3
