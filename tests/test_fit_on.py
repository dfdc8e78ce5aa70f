"""The depth probe's readout fitted on other data than it is judged on, or on what a teacher told of photographs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import depthjepa
from depthjepa.commands import teach as teaching
from depthjepa.data.config import DataConfig
from depthjepa.data.samples import Batch, UnreadableImage
from depthjepa.evaluation.probes.running import probe_config
from depthjepa.evaluation.probes.task import Data
from depthjepa.faults import BadInput
from depthjepa.guidance.target import Description
from depthjepa.guidance.teachers.cache import open_cache
from depthjepa.guidance.teachers.taught import TaughtDepth, open_taught
from depthjepa.losses import Latents
from tiny_images import millimetres, picture, save, write_flat, write_pairs
from tiny_runs import Call, run, tiny

ASKED = ("guidance.kind=feature", "guidance.teacher=huggingface", "guidance.teacher_size=64")


class Brightness:
    """A teacher that takes what is bright for near, in metres."""

    unit, zoomed = "-log(depth / m)", "log added"

    def describe(self) -> Description:
        told: Any = self.zoomed
        return Description(
            "brightness", 1, 8, self.unit, "larger = nearer", stochastic=False, needs_depth=False, zoomed=told
        )

    def to(self, device: torch.device) -> Brightness:
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        values = F.adaptive_avg_pool2d(batch.images.mean(1, keepdim=True), cells)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))


class Roofed(Brightness):
    """It says nothing of the upper half, as a network whose sky is infinitely far."""

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        found = super().batch_latents(batch, cells)
        valid = found.valid.clone()
        valid[..., : cells[0] // 2, :] = False
        return Latents(torch.where(valid, found.values, 0.0), valid)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Any:
    def taught(root: Path, out: Path, teacher: Brightness | None = None) -> Path:
        monkeypatch.setattr(teaching, "load_network", lambda guidance: teacher or Brightness())
        teaching.teach(tiny(root, *ASKED), out, say=lambda _: None)
        return out

    return taught


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "own", 12, 8)
    run(tmp_path / "own", tmp_path / "run", "train.steps=1")
    return tmp_path / "run"


def others(root: Path) -> Path:
    """Pairs that are not those of `trained`."""
    for number in range(500, 514):
        for split in ("train", "val"):
            save(root / split / "rgb" / f"{number:04}.png", picture(number))
            save(root / split / "depth" / f"{number:04}.png", millimetres(number))
    return root


def test_the_unit_of_depth_is_not_carried_over_to_other_data(trained: Path) -> None:
    config = tiny(trained.parent / "own", "data.depth_scale=5000", "data.depth_orientation=stored")
    for found in (config.data.elsewhere("other"), probe_config(config, "other").data):
        assert (found.root, found.depth_scale, found.depth_orientation) == ("other", 1000, None)
    assert probe_config(config, "other", ["data.depth_scale=256"]).data.depth_scale == 256
    assert probe_config(config, None).data.depth_scale == 5000


def test_tables_of_two_folders_of_one_name_lie_beside_each_other(tmp_path: Path, trained: Path) -> None:
    for place in ("a", "b"):
        depthjepa.probe(trained, "depth", data=str(others(tmp_path / place / "pairs")))
    depthjepa.probe(trained, "depth", data=str(tmp_path / "b" / "pairs"))  # again: over its own
    tables = [json.loads(file.read_text())["data"] for file in (trained / "probes").glob("depth-pairs*.json")]
    assert sorted(tables) == [str(tmp_path / place / "pairs") for place in ("a", "b")]


def test_training_images_are_judged_by_what_was_fitted_on_others_alone(tmp_path: Path, trained: Path) -> None:
    config = tiny(
        trained.parent / "own", f"evaluation.fit_on={others(tmp_path / 'others')}", "evaluation.judge_training=true"
    )
    data = Data(config)
    assert (len(data.train), len(data.val), len(data.judged)) == (12, 8, 20)


def figures(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["name"]: {key: value for key, value in row.items() if key != "name"} for row in table["rows"]}


def test_a_readout_on_other_data_is_that_of_a_folder_of_both(tmp_path: Path, trained: Path) -> None:
    other = others(tmp_path / "other")
    both = tmp_path / "both"
    both.mkdir()
    (both / "train").symlink_to(other / "train")
    (both / "val").symlink_to(tmp_path / "own" / "val")
    expected = depthjepa.probe(trained, "depth", both)
    found = depthjepa.probe(trained, "depth", settings=[f"evaluation.fit_on={other}"])
    assert figures(found) == figures(expected)
    own = depthjepa.probe(trained, "depth")
    assert figures(own) != figures(found)
    assert found["data"] == own["data"] and f"; fitted on other data: {other}; " in found["protocol"]
    # The run's own table stays what it was, beside the other one.
    kept = {file.name: json.loads(file.read_text()) for file in (trained / "probes").glob("*.json")}
    assert figures(kept["depth.json"]) == figures(own) and figures(kept["depth-on-other.json"]) == figures(found)


def test_what_a_teacher_told_of_photographs_is_metres_where_they_lie(tmp_path: Path, taught: Any) -> None:
    root = write_flat(tmp_path / "photographs", 9, 48)
    source = open_taught(taught(root, tmp_path / "latents"), DataConfig())
    assert isinstance(source, TaughtDepth) and len(source) == 9 and source.has_depth
    sample = source.sample(3)
    assert sample.depth is not None and sample.depth.shape == (1, 48, 48)
    latents = open_cache(tmp_path / "latents").read([sample.name])
    back = F.adaptive_avg_pool2d(-sample.depth.log(), (8, 8))
    spread = latents.std()
    assert (back - latents[0]).abs().mean() < 0.25 * spread < (back.flip(-1) - latents[0]).abs().mean()
    again = pickle.loads(pickle.dumps(source))  # as it goes to processes that read
    torch.testing.assert_close(again.sample(3).depth, sample.depth)


def test_a_readout_is_fitted_on_a_cache_by_the_command_line(
    tmp_path: Path, trained: Path, taught: Any, call: Call
) -> None:
    root = write_flat(tmp_path / "photographs", 12, 48)
    cache = taught(root, tmp_path / "latents")
    status, _, error = call("probe", trained, "depth", "--fit-on", cache, "--out", tmp_path / "table.json")
    assert status == 0, error
    table = json.loads((tmp_path / "table.json").read_text())
    assert f"fitted on other data: {root} (brightness); " in table["protocol"]
    # The mean map is that of what was told: brightness 0 to 1 is 1 to 0.37 m.
    mean = np.load(trained / "probes/depth-on-latents.npz")["mean_map"]
    assert (mean >= 1).all() and (mean <= np.e).all()  # disparity [1/m]


def test_what_no_readout_can_be_fitted_on_is_refused(tmp_path: Path, trained: Path, taught: Any) -> None:
    root = write_flat(tmp_path / "photographs", 9, 48)

    def refusal(fit_on: Path, *settings: str, task: str = "depth", data: str | None = None) -> str:
        with pytest.raises(BadInput) as fault:
            depthjepa.probe(trained, task, data, settings=[f"evaluation.fit_on={fit_on}", *settings])
        return str(fault.value)

    relative = Brightness()
    relative.unit, relative.zoomed = "inverse depth", "unchanged"
    assert "takes depth in metres" in refusal(taught(root, tmp_path / "relative", relative))
    assert "needs depth, and" in refusal(root)
    assert "there is no" in refusal(tmp_path / "nowhere")
    own = tmp_path / "own"
    other = others(tmp_path / "other")
    assert "judge one data set at a time" in refusal(other, data=f"{own},{other}")
    assert "evaluation.fit_on" in refusal(other, task="normals")
    gone = taught(root, tmp_path / "latents")
    root.rename(tmp_path / "moved")
    assert f"there is no {root}" in refusal(gone) or str(root) in refusal(gone)


def test_a_photograph_that_nothing_was_told_of_is_left_out(tmp_path: Path, taught: Any) -> None:
    root = write_flat(tmp_path / "photographs", 9, 48)
    (root / "0004.png").write_bytes(b"none")
    cache = taught(root, tmp_path / "latents")
    save(root / "0004.png", picture(4, 48, 48))
    source = open_taught(cache, DataConfig())
    with pytest.raises(UnreadableImage, match=r"0004\.png: .* has no latents of it"):
        source.sample(4)


def test_where_a_teacher_said_nothing_is_no_depth(tmp_path: Path, taught: Any) -> None:
    """Half of each image is told: that half counts, and the image does not go missing for the other one."""
    root = write_flat(tmp_path / "photographs", 4, 64)
    config = DataConfig(root=str(root), image_size=(64, 64))
    depths = [
        open_taught(taught(root, tmp_path / name, teacher), config).sample(0).depth
        for name, teacher in (("whole", Brightness()), ("half", Roofed()))
    ]
    whole, half = depths
    assert whole is not None and half is not None
    assert (half[0, :24] == 0).all() and (whole > 0).all()
    torch.testing.assert_close(half[0, 40:], whole[0, 40:])
    cache = open_cache(tmp_path / "half")
    assert np.isnan(cache.part(0)[:, :, :4]).all() and np.isfinite(cache.part(0)[:, :, 4:]).all()
    crops = cache.facts.crops
    assert crops is not None and np.isfinite(crops["correlation"])
