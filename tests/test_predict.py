"""Depth maps of one's own photographs: what they say, what they do not know, and what they write over."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from depthjepa import cost
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.commands.depth_maps import no_better
from depthjepa.drawing import panels
from depthjepa.evaluation import probes
from depthjepa.evaluation.common_view import view_size
from depthjepa.evaluation.probes import decode as decode_task
from depthjepa.evaluation.probes import depth as depth_task
from depthjepa.evaluation.readout import DepthReadout, resized
from depthjepa.logbook import RunFolder
from tiny_images import picture, save, write_flat, write_pairs
from tiny_runs import GUIDED, Call, run


@pytest.fixture
def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a depth readout that says nothing of its origin."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    folder = tmp_path / "run"
    run(write_pairs(tmp_path / "pairs"), folder, *GUIDED, "train.steps=1", "evaluation.pictures=3")
    saved = load_checkpoint(folder)
    config = saved.config
    result = probes.probe("depth", config, saved.encoder(config.evaluation.which), torch.device("cpu"))
    assert result.readout is not None
    RunFolder(folder).save_arrays("probes/depth", result.arrays)
    result.readout.save(folder / "probes" / "depth.safetensors")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_predict_says_that_its_maps_are_no_better_than_the_mean_map(probed: Path, tmp_path: Path, call: Call) -> None:
    file, flat = probed / "probes" / "depth.safetensors", write_flat(tmp_path / "flat", 1, 48)
    readout = DepthReadout.load(file)
    predict = ("predict", probed, flat, "--out", tmp_path / "maps", "--force")
    assert "nothing is known of how good these maps are: `depthjepa probe " in call(*predict)[2]
    guess = {"name": "mean map", "r2_within": 0.0, "absrel": 0.25}
    for within, absrel, said in (
        (-0.125, 0.2, "by R² within images -0.125 (0 is the mean map): these"),
        (0.125, 0.25, "by AbsRel 0.250 (the mean map: 0.250): these"),
        (
            float("nan"),
            0.5,
            "by R² within images nan (0 is the mean map) and AbsRel 0.500 (the mean map: 0",
        ),
        (0.125, 0.2, ""),
    ):
        rows = [guess, {"name": "tiny", "r2_within": within, "absrel": absrel}]
        readout.save(file, {"data": "my pairs", "rows": json.dumps(rows)})
        errors = call(*predict)[2]
        assert said in errors and bool(said) == ("the depth readout is no better" in errors)
        assert not said or "on the held-out images of my pairs" in errors


def test_what_is_made_of_photographs_is_written_over_only_with_force(probed: Path, tmp_path: Path, call: Call) -> None:
    photographs = write_flat(tmp_path / "flat", 3, 48)
    maps, vectors = tmp_path / "maps", tmp_path / "a.npz"
    for command in (("predict", probed, photographs, "--out", maps), ("embed", probed, photographs, "--out", vectors)):
        assert call(*command)[0] == 0
    first, *others = sorted(content(maps))
    (maps / first).write_bytes(b"mine")
    (maps / others[0]).unlink()
    vectors.write_bytes(b"mine")
    before = content(tmp_path)
    status, _, errors = call("predict", probed, photographs, "--out", maps)
    there = rf"{re.escape(first)} is there already, and {len(others) - 1} more of these files: give another --out, or "
    assert status == 2 and re.search(f"{there}--force to write over what is there", errors)
    status, _, errors = call("embed", probed, photographs, "--out", vectors)
    assert status == 2 and re.search(r"a\.npz is there already: give another --out, or --force", errors)
    assert content(tmp_path) == before
    assert call("predict", probed, photographs, "--out", maps, "--force")[0] == 0
    assert call("embed", probed, photographs, "--out", vectors, "--force")[0] == 0
    after = content(tmp_path)
    assert len(content(maps)) == 6 and b"mine" not in after.values()


def test_a_photograph_that_cannot_be_read_is_named(probed: Path, tmp_path: Path, call: Call) -> None:
    save(tmp_path / "photographs" / "a.png", picture(1, 60, 90))
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"no picture")  # of no size, so in a batch of its own
    status, said, errors = call("predict", probed, tmp_path / "photographs", "--out", tmp_path / "maps")
    assert status == 0 and "1 depth maps" in said and "broken.jpg" in errors


def test_maps_are_grey_and_unknown_where_depth_was_never_measured(probed: Path, tmp_path: Path, call: Call) -> None:
    """In the pictures of a probe and of `predict`, in its 16-bit files, and in a readout that is saved and loaded."""
    file = probed / "probes" / "depth.safetensors"
    readout = DepthReadout.load(file)
    assert readout.mean_map.measured.all()
    measured = torch.ones_like(readout.mean_map.measured)
    measured[: len(measured) // 3] = False
    replace(readout, mean_map=replace(readout.mean_map, measured=measured)).save(file)
    torch.testing.assert_close(DepthReadout.load(file).mean_map.measured, measured)
    save(tmp_path / "photographs" / "a.png", picture(1, 60, 90))
    assert call("predict", probed, tmp_path / "photographs", "--out", tmp_path / "maps")[0] == 0
    depth, colour = (np.array(Image.open(tmp_path / "maps" / f"a.{kind}.png")) for kind in ("depth", "colour"))
    grey = (colour == np.round(255 * np.array(panels.INVALID)).astype(np.uint8)).all(-1)
    np.testing.assert_array_equal(depth == 0, grey)
    assert 15 <= grey[:, 0].sum() <= 25 and grey[:15].all() and not grey[25:].any()

    arrays = dict(np.load(probed / "probes" / "depth.npz"))
    plain = shown_maps(probed)
    arrays["measured"] = measured.numpy()
    RunFolder(probed).save_arrays("probes/depth", arrays)
    for before, after in zip(plain, shown_maps(probed), strict=True):
        np.testing.assert_array_equal(after[: len(measured) // 3], np.broadcast_to(panels.INVALID, (4, 12, 3)))
        np.testing.assert_array_equal(after[len(measured) // 3 :], before[len(measured) // 3 :])


def shown_maps(run: Path) -> list[np.ndarray]:
    """The maps of run, random encoder and mean map in the first row of `show depth`."""
    axes = [axis for axis in depth_task.show({"run": run}, photographs=True).axes if axis.images]
    return [np.asarray(axis.images[0].get_array()) for axis in axes[2:5]]


def test_a_readout_of_the_first_version_is_refused_with_what_makes_a_new_one(
    probed: Path, tmp_path: Path, call: Call
) -> None:
    file = probed / "probes" / "depth.safetensors"
    save_file(load_file(file), file, {"step": "2"})  # which does not say a version, as the first one
    status, _, errors = call("predict", probed, write_flat(tmp_path / "flat", 1, 48), "--out", tmp_path / "maps")
    assert status == 2 and "of the first version" in errors and "`depthjepa probe RUN depth`" in errors


def test_a_photograph_is_seen_in_its_own_proportions() -> None:
    """Up to whole patches, and in about as many of them as in training; one like the training images just as they."""
    assert view_size((187, 621), (48, 160), 8) == (48, 160)
    assert view_size((480, 640), (224, 224), 16) == (192, 256)
    assert view_size((640, 480), (224, 224), 16) == (256, 192)
    assert view_size((10, 5000), (48, 48), 8) == (8, 1072)


def test_resizing_known_cells_takes_nothing_from_unknown_ones() -> None:
    values = torch.tensor([[[[9.0, 9.0], [1.0, 3.0], [1.0, 3.0]]]])
    known = torch.tensor([[False, False], [True, True], [True, True]])
    found = resized(values, known, (6, 4))[0, 0]
    torch.testing.assert_close(found[1:], torch.tensor([1.0, 1.5, 2.5, 3.0]).expand(5, 4))
    everywhere = resized(values, torch.ones_like(known), (6, 4))
    assert torch.equal(everywhere, torch.nn.functional.interpolate(values, (6, 4), mode="bilinear"))


def test_what_could_not_be_told_is_no_better() -> None:
    """Depth that is the same in all of an image has no R² within it."""
    untold: dict[str, Any] = {"name": "mine", "r2_within": None, "absrel": 0.1}
    rows = [{"name": "mean map", "r2_within": None, "absrel": 0.2}, untold]
    assert no_better(rows) == ["R² within images nan (0 is the mean map)"]
    assert no_better([rows[0], untold | {"r2_within": 0.3}]) == []
    assert no_better([rows[0], untold | {"r2_within": 0.3, "absrel": None}]) == ["AbsRel nan (the mean map: 0.200)"]


@pytest.mark.slow
def test_a_head_of_its_own_is_judged_by_what_probe_decode_left(tmp_path: Path, call: Call) -> None:
    """Without the probe nothing is known; with it the sky, which no training image measured, is grey and 0."""
    pairs, trained, maps = write_pairs(tmp_path / "pairs"), tmp_path / "run", tmp_path / "maps"
    for file in pairs.rglob("depth/*.png"):
        depth = np.array(Image.open(file))
        depth[: len(depth) // 3] = 0
        Image.fromarray(depth).save(file)
    pixel = (
        "guidance.kind=pixel",
        "guidance.head=mlp",
        "guidance.read=dense",
        "train.steps=1",
        "evaluation.pictures=2",
    )
    run(pairs, trained, *pixel)
    save(tmp_path / "photographs" / "a.png", picture(1, 48, 48))
    predict = ("predict", trained, tmp_path / "photographs", "--out", maps, "--force")
    status, _, errors = call(*predict, "evaluation.which=context")
    assert status == 2 and "evaluation.which has no effect" in errors
    status, _, errors = call(*predict)
    assert status == 0 and "nothing is known of how good these maps are, nor where depth was never measured" in errors
    assert np.array(Image.open(maps / "a.depth.png")).all()

    assert call("probe", trained, "decode")[0] == 0
    _, _, errors = call(*predict)
    rows = json.loads((trained / "probes" / "decode.json").read_text())["rows"]
    assert ("the run's own head is no better than the mean map" in errors) == bool(no_better(rows))
    assert "nothing is known" not in errors
    depth = np.array(Image.open(maps / "a.depth.png"))
    assert not depth[:12].any() and depth[16:].all()
    shown = [axis for axis in decode_task.show({"run": trained}, photographs=True).axes if axis.images]
    for panel in (np.asarray(axis.images[0].get_array()) for axis in shown[1:4]):  # truth, run, mean map
        grey = np.isclose(panel, panels.INVALID).all(-1)
        assert grey[:15].all() and not grey[16:].any()

    table = trained / "probes" / "decode.json"
    table.write_text(table.read_text().replace('"step": 1,', '"step": 7,'))
    assert "nothing is known" in call(*predict)[2]  # of these weights
