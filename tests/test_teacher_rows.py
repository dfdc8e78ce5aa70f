"""The teacher of a run as rows of its depth table: it sees what it taught from, and says what it knows by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import depthjepa
from depthjepa.commands import teach as teaching
from depthjepa.data.samples import Batch
from depthjepa.evaluation import teacher_rows
from depthjepa.evaluation.gathering import Views
from depthjepa.guidance.target import Description
from depthjepa.guidance.teachers.taught import is_metric
from depthjepa.guidance.teachers.transformers_families import CANONICAL
from depthjepa.losses import Latents
from tiny_images import save
from tiny_runs import run, tiny

TAUGHT = ("guidance.kind=feature", "guidance.teacher=huggingface", "guidance.teacher_size=long:96")


class Knows:
    """A teacher that knows how pictures of `write` became depth; `wrong` sees them upside down."""

    def __init__(self, wrong: bool = False) -> None:
        self.wrong = wrong
        self.sizes: set[tuple[int, int]] = set()

    def describe(self) -> Description:
        return Description(
            "knows", 1, 8, "-log(depth / m)", "larger = nearer", stochastic=False, needs_depth=False, zoomed="log added"
        )

    def to(self, device: torch.device) -> Knows:
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        self.sizes.add((batch.images.shape[-2], batch.images.shape[-1]))
        values = -2 * F.adaptive_avg_pool2d(batch.images[:, :1], cells)
        values = values.flip(-2) if self.wrong else values
        return Latents(values, torch.ones_like(values, dtype=torch.bool))


def write(root: Path) -> Path:
    """Pictures of blots twice as wide as high, redder where farther: log depth is twice the red."""
    for number in range(40):
        split = "train" if number < 30 else "val"
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(number))
        pixels = F.interpolate(coarse, (48, 96), mode="bilinear", align_corners=False)[0]
        save(root / split / "rgb" / f"{number:04}.png", (255 * pixels).round().byte().permute(1, 2, 0).numpy())
        metres = (2 * pixels[0]).exp().numpy()
        save(root / split / "depth" / f"{number:04}.png", (1000 * metres).astype(np.uint16))
    return root


@pytest.mark.parametrize("wrong", [False, True])
def test_a_teacher_stands_beside_its_run_as_it_saw_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    root, teacher = write(tmp_path / "pairs"), Knows(wrong)
    monkeypatch.setattr(teaching, "load_network", lambda guidance: teacher)
    teaching.teach(tiny(root, *TAUGHT), tmp_path / "latents", say=lambda _: None)
    run(root, tmp_path / "run", *TAUGHT, f"guidance.cache={tmp_path / 'latents'}", "train.steps=1")
    teacher.sizes.clear()
    monkeypatch.setattr(teacher_rows, "asked_teacher", lambda config, has_depth: teacher)
    table = depthjepa.probe(tmp_path / "run", "depth")
    assert teacher.sizes == {(48, 96)}  # own proportions; the encoder sees squares
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in table["rows"]}
    itself = rows["teacher itself"]
    if wrong:
        assert itself["r2_within"] < 0
        assert any("no better than the mean map on these images" in text for text in table["verdict"]) == (
            rows["teacher"]["r2_within"] <= 0
        )
    else:
        assert itself["absrel"] < 0.05 and itself["r2_within"] > 0.9 and rows["teacher"]["r2_within"] > 0.9
        assert "verdict" not in table
        with np.load(tmp_path / "run" / "probes" / "depth.npz") as kept:  # its maps are drawn beside the run's
            error = np.log(kept["teacher_itself"]) - np.log(kept["truth"])
            assert np.nanmean(np.abs(error)) < 0.1 and "teacher" in kept
    # The same images through the same network: the cache was asked no differently.
    without = depthjepa.probe(tmp_path / "run", "depth", settings=["evaluation.teacher_row=false"])
    assert not {"teacher", "teacher itself"} & {row["name"] for row in without["rows"]}


def test_an_inverse_depth_of_nothing_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    found = teacher_rows.log_metres(torch.tensor([[[[0.5, 0.01, 0.0, -0.001]]]]), "multiplied").exp()
    assert found.flatten().tolist() == pytest.approx([2, 100, 1000, 1000], rel=1e-5)


def test_depth_of_a_canonical_camera_is_no_metres() -> None:
    assert is_metric("-log(depth / m)", "log added") and is_metric("1/m", "multiplied")
    assert not is_metric(CANONICAL.unit, CANONICAL.zoomed) and not is_metric("inverse depth", "unchanged")


def test_a_small_data_set_beside_a_large_one_has_enough_for_the_teacher(tmp_path: Path) -> None:
    small = write(tmp_path / "pairs")
    train = Views(tiny(small, f"data.root=scenes,{small}", "data.scenes_train=900"), "train")
    chosen = teacher_rows._some_of(train)
    assert len(chosen) == 530 and (chosen >= 900).sum() == 30 and (np.diff(chosen) > 0).all()


def test_what_is_said_of_a_teacher_that_knows_nothing() -> None:
    rows: list[dict[str, float | str]] = [{"name": "teacher", "r2_within": -0.2}, {"name": "run", "r2_within": 0.5}]
    told = teacher_rows.TeacherRows(remarks=("a remark",)).sentences(rows)
    assert told == [
        "a remark",
        "the teacher is no better than the mean map on these images (R² within images -0.20): what it teaches of them "
        "is not depth",
    ]
    assert teacher_rows.TeacherRows().sentences([{"name": "run", "r2_within": -1.0}]) == []
