"""The compact teacher that comes with the package: its size, what it knows of unseen scenes, how it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import depthjepa
from depthjepa.config.reading import build_config, build_fit
from depthjepa.data.loading import open_source, view_batches
from depthjepa.faults import BadInput
from depthjepa.guidance.teachers.cache import made_of
from depthjepa.guidance.teachers.depthfm import tiny
from depthjepa.guidance.teachers.depthfm.network import DepthFM
from depthjepa.guidance.teachers.fit.judging import judge, mean_log_depth, predictor
from depthjepa.method import build_teacher
from tiny_images import write_flat
from tiny_runs import metrics, run

pytest.importorskip("diffusers", reason="the depthfm teachers need the extra `teachers`")

SETTINGS = ("guidance.kind=feature", "guidance.teacher=depthfm-tiny")


def test_it_takes_at_most_six_megabytes() -> None:
    checkpoint, vae = tiny.files()
    assert sum(file.stat().st_size for file in (checkpoint, *vae.iterdir())) <= 6e6


@pytest.mark.slow
@pytest.mark.parametrize(("scenes", "for_the_mean"), [(24, 16), (48, 64)])
def test_it_knows_the_depth_of_scenes_that_it_has_never_seen(scenes: int, for_the_mean: int) -> None:
    """A part of the 500 scenes of docs/teachers.md, where δ1 is 0.815 in two steps (mean map 0.548)."""
    teacher = depthjepa.load_teacher("depthfm-tiny")
    assert isinstance(teacher, DepthFM)
    config = build_fit({}, ["data.image_size=128", "fit.holes=farthest", "fit.nearest=1", "fit.farthest=80"])
    unseen = list(view_batches(open_source(config.data, "val"), (128, 128), batch_size=24, limit=scenes))
    seen = view_batches(open_source(config.data, "train"), (128, 128), batch_size=16, limit=for_the_mean)
    mean = mean_log_depth(seen, config.fit.judged)
    predictors = {
        "mean map": lambda batch: mean.expand(len(batch.images), -1, -1, -1),
        "teacher": predictor(teacher, 2),
    }
    rows, _ = judge(predictors, unseen, (1.0, 60.0))
    delta1 = {row["name"]: row["delta1"] for row in rows}
    assert delta1["teacher"] > delta1["mean map"] + 0.2
    assert delta1["teacher"] > 0.75


def test_it_is_a_depthfm_by_another_name_and_needs_nothing() -> None:
    teacher = depthjepa.load_teacher("depthfm-tiny", steps=1)
    said = teacher.describe()
    assert (said.name, said.channels, said.stride, said.needs_depth) == ("depthfm-tiny", 4, 8, False)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    latents = teacher.latents(images)
    assert latents.shape == (2, 4, 8, 12)
    assert torch.equal(latents, depthjepa.load_teacher("depthfm-tiny", steps=1).latents(images))
    with pytest.raises(BadInput, match="the teacher depthfm-tiny takes no 'checkpoint': it has steps, attention"):
        depthjepa.load_teacher("depthfm-tiny", checkpoint="other.ckpt")
    with pytest.raises(BadInput, match=r"guidance\.teacher_vae has no effect here: it takes guidance\.teacher=depthfm"):
        build_teacher(build_config({}, [*SETTINGS, "guidance.teacher_vae=other"]), has_depth=False)


def test_a_cache_knows_its_weights() -> None:
    config = build_config({}, [*SETTINGS])
    told = made_of(config.guidance)
    assert told["teacher"] == "depthfm-tiny" and {"teacher_checkpoint", "teacher_vae"} <= set(told)


def test_it_guides_on_a_folder_of_photographs(tmp_path: Path) -> None:
    root = write_flat(tmp_path / "photographs", 24, size=48)
    settings = (*SETTINGS, "guidance.teacher_steps=1", "train.whitening_images=24", "train.steps=3")
    summary = run(root, tmp_path / "run", *settings)
    assert summary["teacher"]["name"] == "depthfm-tiny" and 0 < summary["depth_floor"] < 1
    # A head that knows nothing yet is as good as the teacher's mean map.
    assert metrics(tmp_path / "run")[0]["loss_depth"] == pytest.approx(summary["depth_floor"], rel=0.3)
