"""Comparing backbones: the common view, who leads with its interval, the command and its page."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import depthjepa
from depthjepa.columns import Column
from depthjepa.commands.compare import _names
from depthjepa.evaluation.common_view import OnView, common, nearest_size
from depthjepa.evaluation.leads import RESAMPLES, Lead, lead
from depthjepa.evaluation.probes import depth, segment
from depthjepa.faults import BadInput
from depthjepa.grid import to_map, to_tokens
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer
from tiny_images import write_pairs
from tiny_runs import Call, run, tiny


def counting(encoder: VisionTransformer) -> list[int]:
    """How many images each call of an encoder gets."""
    calls: list[int] = []
    encoder.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    return calls


@pytest.fixture
def encoder() -> VisionTransformer:
    return build_encoder(tiny(Path("nowhere"))).eval()


@torch.no_grad()
def test_a_view_is_resized_for_the_encoder_and_its_tokens_for_the_grid(encoder: VisionTransformer) -> None:
    images = torch.rand(3, 3, 96, 120, generator=torch.Generator().manual_seed(0))
    seen = OnView(encoder, sees=(32, 40), grid=(8, 10), patch_size=12)
    own = F.interpolate(images, (32, 40), mode="bilinear", antialias=True).clamp(0, 1)
    tokens = encoder(encoder.normalise(own))
    expected = to_tokens(F.interpolate(to_map(tokens, (4, 5)), (8, 10), mode="bilinear", align_corners=False))
    torch.testing.assert_close(seen(seen.normalise(images)), expected)
    both = seen.features(images, [0, -1])
    torch.testing.assert_close(both[1], expected)
    assert both[0].shape == expected.shape and not torch.equal(both[0], both[1])
    same = OnView(encoder, sees=(96, 120), grid=(12, 15), patch_size=8)
    assert torch.equal(same(images), encoder(encoder.normalise(images)))


@torch.no_grad()
def test_images_are_encoded_once_as_far_as_there_is_room(encoder: VisionTransformer) -> None:
    images = torch.rand(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    image = 36 * 32 * 4  # bytes of its tokens
    plain = OnView(encoder, (48, 48), (6, 6), 8)(images)
    calls = counting(encoder)
    seen = OnView(encoder, (48, 48), (6, 6), 8, room=4 * image)
    for order in (torch.arange(6), torch.tensor([5, 0, 3, 1, 4, 2])):
        torch.testing.assert_close(seen(images[order]), plain[order], rtol=0, atol=1e-6)
    assert calls == [6, 2]  # four are remembered
    (only,) = seen.features(images[:4], [1])
    torch.testing.assert_close(only, plain[:4], rtol=0, atol=1e-6)
    assert calls == [6, 2]


def test_the_view_is_as_fine_as_the_finest_and_patches_divide_it() -> None:
    sizes, patches = [(32, 120), (128, 416), (96, 84)], [8, 32, 14]
    grid, patch = common(sizes, patches)
    assert grid == (6, 15)
    assert grid[0] * patch >= 128 and grid[1] * patch >= 416
    assert nearest_size((100, 9), 16) == (96, 16)


def judged(residual: np.ndarray, groups: int) -> dict[str, np.ndarray]:
    count = len(residual)
    names = np.array([f"place-{number % groups}" for number in range(count)])
    return {"within_residual": residual, "within_total": np.ones(count), "group": names}


def table_of(figures: Mapping[str, float]) -> dict[str, object]:
    rows = [{"name": name, "r2_within": value} for name, value in figures.items()]
    return {"task": "depth", "columns": [depth.COLUMNS[0].to_json()], "rows": rows}


def test_the_interval_is_that_of_resampled_groups() -> None:
    """Against a slow bootstrap with other draws; images of a group go together, so fewer groups make it wider."""
    draw = np.random.default_rng(0)
    place = draw.normal(0.2, 0.15, 12)
    second = np.full(240, 0.6)
    first = second - np.tile(place, 20)  # image i is of place i modulo 12
    arrays = {"a": judged(first, 12), "b": judged(second, 12)}
    figures = {name: 1 - each["within_residual"].mean() for name, each in arrays.items()}
    found = lead(depth.TASK, table_of({"mean map": 0.0, **figures}), arrays)
    assert found is not None and (found.first, found.second, found.groups) == ("a", "b", 12)
    assert found.difference == pytest.approx(place.mean())
    slow = [draw.choice(place, 12).mean() for _ in range(4 * RESAMPLES)]
    assert found.low is not None and found.high is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.01)
    assert "a is ahead of b" in found.sentence and "bootstrap over 12 groups" in found.sentence


def test_what_cannot_be_told_apart_is_said() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 60)
    arrays = {"a": judged(0.5 + noise, 10), "b": judged(0.5 - noise, 10)}
    figures = {name: 1 - float(each["within_residual"].mean()) for name, each in arrays.items()}
    found = lead(depth.TASK, table_of(figures), arrays)
    assert found is not None and found.low is not None and found.low < 0 < (found.high or 0)
    assert "cannot be told apart" in found.sentence


def test_where_less_is_better_the_lead_is_said_as_far_as_it_goes() -> None:
    column = Column("angle", "mean angle", "", unit="°", better="lower")
    found = Lead("normals", column, "a", "b", -1.22, -1.55, -0.902, 300, "")
    assert found.sentence == (
        "normals, mean angle: a is ahead of b by 1.22 ° (95 % interval 0.902 to 1.55 °, bootstrap over 300 groups)."
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (judged(np.full(30, 0.5), 5), "no interval: 5 groups, fewer than 6"),
        (judged(np.full(30, 0.5), 8) | {"group": np.array([""] + ["x"] * 29)}, "nothing tells which scene or place"),
        ({"images": np.zeros(3)}, "figures of single images are not kept"),
    ],
)
def test_without_enough_groups_there_is_no_interval(changed: dict[str, np.ndarray], why: str) -> None:
    found = lead(depth.TASK, table_of({"a": 0.5, "b": 0.4}), {"a": changed, "b": changed})
    assert found is not None and found.low is None and found.high is None
    assert why in found.sentence and "interval " not in found.sentence.replace("no interval", "")


def test_lower_is_better_where_a_column_says_so_and_one_encoder_leads_nobody() -> None:
    column = Column("mean_angle", "angle", "mean error", "degrees", "lower")
    task = replace(depth.TASK, resampled=None, name="normals")
    rows = [{"name": "a", "mean_angle": 20.0}, {"name": "b", "mean_angle": 15.0}]
    result = {"task": "normals", "columns": [column.to_json()], "rows": rows}
    found = lead(task, result, {"a": {}, "b": {}})
    assert found is not None and (found.first, found.difference) == ("b", -5.0)
    assert lead(task, result, {"a": {}}) is None


def test_resampled_iou_is_that_of_the_images_that_count() -> None:
    overlaps = np.array([[[4, 0], [5, 3], [4, 4]], [[1, 2], [6, 2], [1, 7]], [[9, 9], [9, 9], [9, 9]]])
    found = segment.resampled_iou({"overlaps": overlaps}, np.array([2.0, 1.0, 0.0]))
    right, true, predicted = 2 * overlaps[0] + overlaps[1]
    assert found == pytest.approx(100 * np.mean(right / (true + predicted - right)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of eight scenes, and two runs of other patches on them."""
    folder = tmp_path_factory.mktemp("compare")
    write_pairs(folder / "pairs", 24, 16)
    # Training images have the numbers from 0, validation images those from 1000.
    groups = {
        "groups": [[f"{first + number:04d}", f"place-{number % 8}"] for first in (0, 1000) for number in range(24)]
    }
    (folder / "pairs" / "groups.json").write_text(json.dumps(groups))
    run(folder / "pairs", folder / "fine", "name=fine", "train.steps=2", "data.image_size=48")
    run(
        folder / "pairs", folder / "coarse", "name=coarse", "train.steps=2", "data.image_size=60", "model.patch_size=12"
    )
    return folder


def test_one_backbone_at_its_own_size_has_the_figures_of_its_probe(place: Path) -> None:
    settings = ["data.image_size=48", "train.threads=1"]
    found = depthjepa.compare([place / "fine"], place / "pairs", ["depth"], settings=settings)
    alone = depthjepa.probe(place / "fine", "depth", settings=settings)
    rows = {row["name"]: row for row in found["rows"]}
    own = {row["name"]: row for row in alone["rows"]}
    assert found["view"] == {"image_size": [48, 48], "grid": [6, 6]}
    for name in ("mean map", "raw patches", "fine"):
        told = {key: rows[name][f"depth.{key}"] for key in own[name] if key != "name"}
        assert told == pytest.approx({key: value for key, value in own[name].items() if key != "name"}, rel=1e-5)
    assert found["leads"] == []


@pytest.mark.slow
def test_backbones_of_other_patches_are_judged_on_the_same_cells(place: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    status, said, errors = call(
        "compare", place / "fine", place / "coarse", "--data", place / "pairs", "--out", out, "train.threads=1",
        "evaluation.pictures=2",
    )  # fmt: skip
    assert status == 0, errors
    assert "fine: target encoder; sees 40 x 56 px, 5 x 7 patches" in errors
    assert "left out: the segment probe needs label maps" in errors
    content = json.loads((out / "compare.json").read_text())
    names = [row["name"] for row in content["rows"]]
    assert names[-2:] == ["fine", "coarse"] and {"random encoder, fine", "random encoder, coarse"} < set(names)
    assert {"mean map", "raw patches"} < set(names) and "random encoder" not in names
    (depths,) = [each for each in content["tables"] if each["task"] == "depth"]
    assert len({row["images"] for row in depths["rows"]}) == 1
    # Each backbone's own folder has its rows and maps, as a run's: truth and mean map are the same for both.
    maps = [np.load(out / name / "probes" / "depth.npz") for name in ("fine", "coarse")]
    for key in ("truth", "mean_map", "group", "within_total"):
        np.testing.assert_array_equal(maps[0][key], maps[1][key])
    assert not np.array_equal(maps[0]["prediction"], maps[1]["prediction"])
    table = json.loads((out / "coarse" / "probes" / "depth.json").read_text())
    assert [row["name"] for row in table["rows"]][-2:] == ["random encoder", "coarse"]
    page = (out / "report.html").read_text()
    opening = page.split("<section>")[0]
    assert html.escape(content["leads"][0]["sentence"]) in opening and opening.count("<img") == 1
    for text in ("random encoder, fine", "What was compared", "data:image/png;base64"):
        assert text in page
    assert call("report", out, "--out", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_text() == page
    assert call("report", out / "fine", out / "coarse", "--out", tmp_path / "two.html")[0] == 0
    assert call("show", "depth", out / "fine", out / "coarse", "--out", tmp_path / "maps.png")[0] == 0
    leads = {each["task"]: each for each in content["leads"]}
    assert leads["depth"]["groups"] == 8 and leads["depth"]["low"] <= leads["depth"]["high"]
    assert leads["depth"]["sentence"] in said


@pytest.mark.slow
def test_an_earlier_comparison_in_the_folder_leaves_nothing(place: Path, tmp_path: Path) -> None:
    settings, out = ["data.image_size=48", "train.threads=1", "evaluation.pictures=2"], tmp_path / "out"
    old = out / "fine" / "probes" / "segment.npz"
    depthjepa.compare([place / "fine"], place / "pairs", ["depth"], settings=settings, out=out)
    old.write_bytes((out / "fine" / "probes" / "depth.npz").read_bytes())
    depthjepa.compare([place / "fine"], place / "pairs", ["depth"], settings=settings, out=out)
    assert not old.exists() and (out / "fine" / "probes" / "depth.npz").exists()


@pytest.mark.parametrize(
    ("own", "places", "names"),
    [
        (["a", "b"], ["x/1", "x/2"], ["a", "b"]),
        (["a", "a", "b"], ["x/1", "x/2", "x/3"], ["1", "2", "b"]),
        (["photos", "photos", "rgbd"], ["x/rgbd", "x/photos2", "x/c"], ["rgbd", "photos2", "c"]),
        (["mean map", "b"], ["x/1", "x/2"], ["1", "b"]),
    ],
)
def test_no_two_backbones_have_one_name(own: list[str], places: list[str], names: list[str]) -> None:
    assert _names(own, [Path(place) for place in places]) == names


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_left_out_and_counted(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "pairs", tmp_path / "pairs")
    photograph = min((tmp_path / "pairs" / "val" / "rgb").iterdir())
    photograph.write_bytes(b"no picture")
    settings = ["data.image_size=48", "train.threads=1"]
    found = depthjepa.compare([place / "fine"], tmp_path / "pairs", ["depth"], settings=settings)
    assert "1 unreadable left out" in found["tables"][0]["protocol"]


@pytest.mark.slow
def test_rendered_streets_allow_all_usual_tasks(place: Path, tmp_path: Path) -> None:
    settings = ["data.scenes_train=24", "data.scenes_val=12", "data.image_size=48", "train.threads=1"]
    settings += ["evaluation.segment_steps=4", "evaluation.neighbours=[3]"]
    found = depthjepa.compare(
        [place / "fine", place / "coarse"], "scenes", out=tmp_path / "out", random=False, settings=settings
    )
    assert "Segmentation read out of the features" in (tmp_path / "out" / "report.html").read_text()
    tasks = {each["task"] for each in found["tables"]}
    assert {"depth", "segment", "knn"} <= tasks
    assert not any("random" in row["name"] for row in found["rows"])
    leads = {each["task"]: each for each in found["leads"]}
    assert leads["depth"]["groups"] == leads["segment"]["groups"] == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fine", "fine"), "this backbone is given twice"),
        (("fine", "--tasks", "dept"), "there is no probe 'dept' (did you mean 'depth'?)"),
        (("fine", "--tasks", "decode"), "decode reads more of a run than its encoder"),
        (("fine", "--tasks", "knn"), "the knn probe needs labels"),
        (("fine", "train.steps=3"), "of train.* a comparison takes train.device and train.threads alone"),
        (("fine", "model.width=3"), "model.* has no effect on a comparison"),
        (("fine", "evaluation.attentive_lr=1"), "evaluation.attentive_lr has no effect"),
        (("absent",), "there is no checkpoint absent"),
        (("data.image_size=48",), "give at least one backbone"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    arguments: tuple[str, ...], said: str, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    status, _, errors = call("compare", *arguments, "--data", "pairs", "--out", "out")
    assert status == 2 and said in errors and len(errors.strip().splitlines()) == 1
    assert not (place / "out").exists()


def test_other_protocols_than_the_usual_ones_are_refused(place: Path) -> None:
    with pytest.raises(BadInput, match=r"evaluation\.depth_readout=.*comparisons have each task's usual one"):
        depthjepa.compare([place / "fine"], place / "pairs", ["depth"], settings=["evaluation.depth_readout=dpt"])


def test_a_folder_that_holds_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt"):
        depthjepa.compare([place / "fine"], place / "pairs", ["depth"], out=tmp_path)


def test_the_folder_of_the_runs_themselves_is_refused(place: Path, tmp_path: Path) -> None:
    run_of = shutil.copytree(place / "fine", tmp_path / "runs" / "fine")
    before = {path: path.read_bytes() for path in run_of.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="fine is there and is not of an earlier comparison"):
        depthjepa.compare([run_of], place / "pairs", ["depth"], out=tmp_path / "runs", settings=["data.image_size=48"])
    assert {path: path.read_bytes() for path in run_of.rglob("*") if path.is_file()} == before
