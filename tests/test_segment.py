"""Segmentation on planted tokens, against hand computations, and as the command runs it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthjepa.columns import Column, columns_of, meaning_of
from depthjepa.config.reading import build_config
from depthjepa.data.groups import Division
from depthjepa.data.samples import VOID, Batch
from depthjepa.drawing import figures
from depthjepa.drawing.panels import INVALID
from depthjepa.evaluation import patch_bank, segmentation, tokens
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import RANDOM, RAW, raw_patches
from depthjepa.evaluation.patch_bank import PatchBank, class_shares
from depthjepa.evaluation.probes import probe
from depthjepa.evaluation.probes.segment import TASK
from depthjepa.evaluation.segment_scores import class_iou, confusion, figures_of, overlaps
from depthjepa.evaluation.segmentation import (
    POSITION,
    Plan,
    SegmentTable,
    class_counts,
    fit,
    layers_of,
    position_map,
    segment_table,
)
from depthjepa.evaluation.tokens import KeptPairs, pairs_of
from depthjepa.faults import BadInput
from depthjepa.method import build_encoder
from depthjepa.report.page import write_report
from depthjepa.study.claims import Comparison
from depthjepa.study.plan import Study, resolve
from tiny_images import CLASSES, write_classes, write_labelled
from tiny_runs import SETTINGS, Call, run, tiny

PATCH, GRID = 4, (3, 6)
SIZE = (PATCH * GRID[0], PATCH * GRID[1])
NAMES = ("sky", "road", "car", "tree")
PLAN = Plan("linear", NAMES, SIZE, PATCH, steps=120, pictures=2)


class Planted:
    """Images of upright stripes as wide as a patch, each of one class; the blue channel says which image it is."""

    def __init__(self, count: int, seed: int, classes: int = 3) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.stripes = torch.randint(classes, (count, GRID[1]), generator=draw)
        self.labels = self.stripes.repeat_interleave(PATCH, 1)[:, None, None].expand(-1, 1, SIZE[0], -1).byte().clone()
        self.images = torch.rand(count, 3, *SIZE, generator=draw)
        self.images[:, 2] = (torch.arange(count) / 255)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self) -> Iterator[Batch]:
        return self.chosen(torch.arange(len(self)))

    def chosen(self, numbers: torch.Tensor) -> Iterator[Batch]:
        for part in torch.split(numbers, 7):
            ones, labels = torch.ones(len(part)), torch.full((len(part),), -1)
            yield Batch(part, self.images[part], None, ones, labels, label_map=self.labels[part])

    def telling(self, *, another: bool = False) -> Encode:
        """Noise tokens, four channels of which are the patch's class; if `another`, that of the next image."""
        shown = F.one_hot(self.stripes.roll(1, 0) if another else self.stripes, len(NAMES)).float()

        def encode(images: torch.Tensor) -> torch.Tensor:
            which = (images[:, 2, 0, 0] * 255).round().long()
            known = shown[which].repeat(1, GRID[0], 1)
            noise = torch.sin(1000 * F.avg_pool2d(images[:, :2], PATCH).flatten(2).transpose(1, 2))
            return torch.cat([3 * known + 5, 0.1 * noise], 2)

        return encode


def both(train: Planted, val: Planted, *, another: bool = False) -> Encode:
    """The planted tokens of two sets, told apart by the red corner."""
    first, second = train.telling(), val.telling(another=another)
    train.images[:, 0, 0, 0], val.images[:, 0, 0, 0] = 0.25, 0.75

    def encode(images: torch.Tensor) -> torch.Tensor:
        is_val = images[:, 0, 0, 0] > 0.5
        return torch.where(is_val[:, None, None], second(images), first(images)) if is_val.any() else first(images)

    return encode


def folds(count: int) -> Division:
    """Every fifth image is a fold, whatever else: planted ones do not know one another."""
    return Division(np.arange(count) % 5, "5 groups")


def table(encode: Encode, train: Planted, val: Planted, plan: Plan = PLAN) -> SegmentTable:
    encoders = {RAW: raw_patches(PATCH, torch.device("cpu")), "run": encode}
    return segment_table(encoders, train, val, folds(len(train)), plan)


def found_on(train: Planted, val: Planted, *, another: bool = False, plan: Plan = PLAN) -> SegmentTable:
    return table(both(train, val, another=another), train, val, plan)


def row_of(found: SegmentTable, name: str = "run") -> dict[str, float]:
    (row,) = (row for row in found.rows if row["name"] == name)
    return {key: float(value) for key, value in row.items() if key != "name"}


@pytest.fixture
def train() -> Planted:
    return Planted(20, 0)


@pytest.fixture
def val() -> Planted:
    return Planted(10, 1)


def test_confusion_iou_and_mean_by_hand() -> None:
    truth = torch.tensor([[[[0, 0, 1], [1, 255, 2]]], [[[0, 0, 0], [0, 0, 0]]]]).byte()
    predicted = torch.tensor([[[0, 1, 1], [1, 2, 0]], [[3, 0, 0], [0, 0, 0]]])
    counts = confusion(truth, predicted, 4)
    assert counts[0].tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert counts[1].tolist() == [[5, 0, 0, 1], [0] * 4, [0] * 4, [0] * 4]
    assert overlaps(counts)[0].tolist() == [[1, 2, 0, 0], [2, 2, 1, 0], [2, 3, 0, 0]]
    iou = class_iou(overlaps(counts[0]))
    assert iou[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0]) and iou[3].isnan()
    # The sums of both images: class 3 is predicted once and never true, so it is no class of the mean.
    whole = figures_of(overlaps(counts).sum(0), NAMES)
    assert torch.equal(overlaps(counts).sum(0), overlaps(counts.sum(0)))
    assert set(whole) == {"miou", "accuracy", "iou_sky", "iou_road", "iou_car"}
    assert whole["iou_sky"] == pytest.approx(100 * 6 / 9) and whole["iou_road"] == pytest.approx(100 * 2 / 3)
    assert whole["miou"] == pytest.approx(100 * (6 / 9 + 2 / 3 + 0) / 3)
    assert whole["accuracy"] == pytest.approx(100 * 8 / 11)


def test_the_position_s_map_by_hand(train: Planted) -> None:
    train.labels[:] = VOID
    train.labels[:3, 0, 0, 0] = torch.tensor([1, 1, 2])
    train.labels[:5, 0, 0, 1] = 2
    guess = position_map(class_counts(train, PLAN))
    assert guess[0, :2].tolist() == [1, 2]
    assert (guess.flatten()[2:] == 2).all()  # the most frequent one where none was ever met


def test_a_patch_has_the_shares_of_its_pixels() -> None:
    labels = torch.full((1, 1, 4, 8), VOID, dtype=torch.uint8)
    labels[0, 0, :2, :4], labels[0, 0, 2, :4], labels[0, 0, 0, 4] = 1, 3, 0
    shares = class_shares(labels, 4, 4)
    assert shares.tolist() == [[[0, 0.5, 0, 0.25], [1 / 16, 0, 0, 0]]]


def test_neighbours_vote_by_the_softmax_of_their_cosines() -> None:
    directions = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]))
    bank = PatchBank(directions, torch.eye(3), torch.tensor([4.0, -2.0]))
    (vote,) = bank.vote(torch.tensor([[[7.0, -2.0]]]))[0]
    cosines = torch.tensor([1.0, 1 / math.sqrt(1.01), -1.0])
    assert torch.allclose(vote, (cosines / 0.02).softmax(0))


def test_similarities_are_cut_into_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    bank = PatchBank(F.normalize(torch.randn(40, 8, generator=draw)), torch.rand(40, 4, generator=draw), torch.zeros(8))
    asked = torch.randn(3, 5, 8, generator=draw)
    whole = bank.vote(asked)
    monkeypatch.setattr(patch_bank, "COMPARED", 100)
    assert torch.allclose(bank.vote(asked), whole, atol=1e-6)


def test_the_layers_are_those_of_the_depth_readouts() -> None:
    assert layers_of("linear", 12) == [11] and layers_of("linear4", 12) == [2, 5, 8, 11]


def test_tokens_that_know_the_class_give_all_of_it(train: Planted, val: Planted) -> None:
    found = found_on(train, val)
    known, raw = row_of(found), row_of(found, RAW)
    assert known["miou"] > 99.9 and known["knn_miou"] > 99.9 and known["accuracy"] > 99.9
    assert "iou_tree" not in known  # of four classes three occur
    assert raw["miou"] < 45 and raw["knn_miou"] < 45 and row_of(found, POSITION)["miou"] < 45
    assert [row["name"] for row in found.rows] == [POSITION, RAW, "run"]
    assert known["rate"] in segmentation.RATES and "rate" not in row_of(found, POSITION)
    assert found.judged["run"].overlaps.shape == (10, 3, 4)
    assert found.images.shape == (2, *SIZE, 3) and np.array_equal(found.truth, val.labels[[2, 7], 0])
    assert (np.stack(found.judged["run"].shown) == found.truth).mean() > 0.999


def test_the_position_is_judged_by_hand(train: Planted, val: Planted) -> None:
    guess = train.labels[:, 0].long().mode(0).values
    right = (guess == val.labels[:, 0]).double().mean()
    assert row_of(found_on(train, val), POSITION)["accuracy"] == pytest.approx(100 * float(right))


def test_another_image_s_classes_tell_nothing(train: Planted, val: Planted) -> None:
    low = row_of(found_on(train, val, another=True))
    assert low["miou"] < 35 and low["knn_miou"] < 35  # three classes: by chance about 20


@pytest.mark.slow
def test_void_never_counts(train: Planted, val: Planted) -> None:
    """Where training and validation are void, tokens tell nothing and nothing is lost; a class there would be."""
    whole = found_on(train, val)
    for images in (train, val):
        images.labels[:, :, :PATCH] = VOID
    tokens_below, encode = 2 * GRID[1], both(train, val)

    def blind(images: torch.Tensor) -> torch.Tensor:
        found = encode(images)
        found[:, :-tokens_below, : len(NAMES)] = 0
        return found

    found = table(blind, train, val)
    assert found.judged["run"].overlaps[:, 1].sum() == found.judged[POSITION].overlaps[:, 1].sum() == 10 * 8 * 24
    kept = row_of(found)
    # Half a patch beside the void takes from tokens that know nothing.
    assert kept["accuracy"] > 95 and kept["knn_miou"] > 90 and row_of(whole)["accuracy"] > 99.9


@pytest.mark.slow
def test_tokens_without_room_are_encoded_anew_to_the_same_end(
    train: Planted, val: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = found_on(train, val)
    monkeypatch.setattr(tokens, "KEPT_BYTES", 0)
    again = found_on(train, val)
    for one, other in zip(kept.rows, again.rows, strict=True):
        assert {key: value for key, value in one.items() if key != "name"} == pytest.approx(
            {key: value for key, value in other.items() if key != "name"}, abs=0.5
        )


@pytest.mark.slow
def test_the_seed_decides_everything(train: Planted, val: Planted) -> None:
    one, two = found_on(train, val), found_on(train, val)
    assert one.rows == two.rows
    assert torch.equal(one.judged["knn run"].overlaps, two.judged["knn run"].overlaps)


def test_the_bank_takes_alike_from_all_images_and_nothing_void(train: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_bank, "BANK", 50)
    train.labels[3] = VOID
    train.labels[4, :, :, PATCH:] = VOID
    encode = train.telling()

    def named(images: torch.Tensor) -> torch.Tensor:
        found = encode(images)
        found[..., 4] = images[:, 2, :1, 0] * 255
        return found

    pairs, numbers = pairs_of(named, train, segmentation.labels_of)
    count = len(numbers)
    assert isinstance(pairs, KeptPairs) and pairs.beside.dtype == torch.uint8
    bank = patch_bank.patch_bank(pairs, count, patch_size=PATCH, classes=len(NAMES), seed=PLAN.seed)
    # 50 of 20 images: 2 and 3 in turn; of image 3 none, and all 3 with a class of image 4 (2 are asked for).
    assert len(bank.directions) == 50 - 3 and (bank.shares.sum(1) == 1).all()
    whole = patch_bank.patch_bank(pairs, count, patch_size=PATCH, classes=len(NAMES), seed=PLAN.seed)
    assert torch.equal(whole.directions, bank.directions)


@pytest.mark.parametrize(
    ("labels", "of", "message"),
    [
        (VOID, "train", "no pixel of the 20 training images has a class: all of their label maps are void"),
        (VOID, "val", "no pixel of the 10 validation images has a class: all of their label maps are void"),
        (
            2,
            "train",
            "at least two classes, and all pixels of the 20 training images that are not void are of one, 'car'",
        ),
    ],
)
def test_labels_that_tell_nothing_are_refused_before_a_fit(
    train: Planted, val: Planted, labels: int, of: str, message: str
) -> None:
    {"train": train, "val": val}[of].labels[:] = labels

    def never(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("encoded before the labels were looked at")

    with pytest.raises(BadInput, match=re.escape(message)):
        segment_table({"run": never}, train, val, folds(20), PLAN)


def test_too_few_images_and_images_without_maps_are_refused(val: Planted) -> None:
    few = Planted(1, 0)
    pairs, _ = pairs_of(few.telling(), few, segmentation.labels_of)
    with pytest.raises(BadInput, match="at least 5 training images, and there are 1"):
        fit(pairs, torch.tensor([True]), PLAN)
    batch = next(val())
    with pytest.raises(BadInput, match=r"give a labelled folder .* or rendered streets"):
        segmentation.labels_of(Batch(batch.index, batch.images, None, batch.zoom, batch.labels))


def test_settings_are_checked() -> None:
    for setting, said in (("segment_readout=linear5", "did you mean 'linear"), ("segment_steps=0", "segment_steps=0")):
        with pytest.raises(BadInput, match=said):
            build_config({"name": "x"}, [f"evaluation.{setting}"])


def test_a_family_of_names_is_one_column() -> None:
    columns = (Column("iou_*", "* IoU", "each class"), Column("iou_mean", "mean", "of all"), Column("k_#", "#", "n"))
    found = columns_of(columns, [{"name": "x", "iou_traffic light": 1.0, "iou_sky 2": 2.0, "k_3": 1.0, "k_x": 1.0}])
    assert [(column.key, column.label) for column in found] == [
        ("iou_traffic light", "traffic light IoU"),
        ("iou_sky 2", "sky 2 IoU"),
        ("k_3", "3"),
    ]
    assert meaning_of(columns, "iou_mean") == "of all" and meaning_of(columns, "iou_road") == "each class"
    assert meaning_of(columns, "iou_") == "" and meaning_of(columns, "k_x") == ""


def test_classes_have_colours_of_their_own_whatever_the_others_are() -> None:
    colours = figures.class_colours(150)
    assert np.array_equal(figures.class_colours(11), colours[:11])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 3 * np.eye(150)
    assert apart.min() > 0.01 and apart[:18, :18].min() > 0.1
    assert np.abs(colours - np.array(INVALID)).sum(-1).min() > 0.15  # void's grey


def test_maps_are_drawn_with_a_legend_of_what_is_there() -> None:
    truth = np.array([[[0, 255], [2, 2]]], dtype=np.uint8)
    images = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    drawn = figures.label_rows(images, truth, {"run": np.minimum(truth, 2)}, NAMES)
    panels = [axis.images[0].get_array() for axis in drawn.axes]
    assert len(panels) == 3
    colours = figures.class_colours(4)
    assert np.allclose(panels[1], [[colours[0], INVALID], [colours[2], colours[2]]])
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["sky", "car", "void"]
    assert len(figures.label_rows(images, truth, {}, NAMES, photographs=False).axes) == 1


QUICK = ("evaluation.segment_steps=4", "evaluation.pictures=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a labelled folder: its photographs are what it is trained on."""
    folder = tmp_path_factory.mktemp("segment")
    run(write_labelled(folder / "labelled"), folder / "tiny", "train.steps=2")
    return folder / "tiny"


@pytest.mark.slow
def test_the_command_writes_the_table_and_draws_it(trained: Path, tmp_path: Path, call: Call) -> None:
    status, output, errors = call("probe", trained, "segment", *QUICK, "--out", tmp_path / "x.json")
    assert status == 0, errors
    found = json.loads((tmp_path / "x.json").read_text())
    assert json.loads((trained / "probes" / "segment.json").read_text()) == found
    assert [row["name"] for row in found["rows"]] == [POSITION, RAW, RANDOM, "tiny"]
    keys = [column["key"] for column in found["columns"]]
    assert keys == ["miou", "knn_miou", "accuracy", *(f"iou_{name}" for name in CLASSES[:3]), "rate"]
    assert {column["unit"] for column in found["columns"][:-1]} == {"%"}
    assert all(0 <= row[key] <= 100 for row in found["rows"][1:] for key in keys[:-1])
    assert "12 training and 6 validation images, whole views at 48 px" in found["protocol"]
    assert "linear readout of layer 2 of 2" in found["protocol"] and "4 steps of 16" in found["protocol"]
    assert "box IoU" in output
    with np.load(trained / "probes" / "segment.npz") as arrays:
        kept = dict(arrays)
    assert tuple(kept["classes"]) == CLASSES and kept["names"][0] == "val/rgb/1000.png"
    for prefix in ("", "random_", "raw_"):
        for kind in ("overlaps", "knn_overlaps"):
            assert kept[f"{prefix}{kind}"].shape == (6, 3, 4)
    assert "position_knn_overlaps" not in kept and kept["position_overlaps"].shape == (6, 3, 4)
    again = figures_of(torch.from_numpy(kept["overlaps"].astype(np.int64)).sum(0), CLASSES)
    assert again["miou"] == pytest.approx(found["rows"][-1]["miou"])
    for key in ("truth", "prediction", "random", "raw", "position"):
        assert kept[key].shape == (2, 48, 48)
    assert call("show", "segment", trained, "--out", tmp_path / "x.png")[0] == 0
    assert call("show", "segment", trained, "--no-photographs", "--out", tmp_path / "y.png")[0] == 0
    write_report([trained], tmp_path / "report.html")
    text = re.sub("<[^>]*>", "", (tmp_path / "report.html").read_text())
    assert "Segmentation read out of the features" in text and "Segmentation from frozen features" in text


def test_four_layers_are_a_table_of_their_own(trained: Path, call: Call) -> None:
    status, _, errors = call("probe", trained, "segment", *QUICK, "evaluation.segment_readout=linear4")
    assert status == 0, errors
    found = json.loads((trained / "probes" / "segment-linear4.json").read_text())
    assert "linear4 readout of layers 1, 1, 2, 2 of 2" in found["protocol"]


def test_a_folder_made_of_mere_weights_keeps_the_tables_of_other_data(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    small = Path(__file__).parents[1] / "releases" / "pretrained-small.safetensors"
    assert call("convert", small, tmp_path / "small", "--to", "depthjepa")[0] == 0
    root = trained.parent / "labelled"
    status, _, errors = call("probe", tmp_path / "small", "segment", "--data", root, "data.image_size=16", *QUICK)
    assert status == 0, errors
    assert (tmp_path / "small" / "probes" / "segment-labelled.npz").is_file()


def test_rendered_streets_are_segmented(tmp_path: Path, call: Call) -> None:
    small = Path(__file__).parents[1] / "releases" / "pretrained-small.safetensors"
    scenes = ("data.image_size=32", "data.scenes_train=8", "data.scenes_val=4")
    status, _, errors = call("probe", small, "segment", "--data", "scenes:5", *scenes, *QUICK, "--out", tmp_path / "x")
    assert status == 0, errors
    found = json.loads((tmp_path / "x").read_text())
    assert found["data"] == "scenes:5" and {"iou_sky", "iou_ground"} < {each["key"] for each in found["columns"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "--data", "CLASSES"], "the segment probe needs label maps, and CLASSES has none: give a labelled"),
        (["segment", "evaluation.depth_steps=3"], "evaluation.depth_steps has no effect"),
        (["diagnose", "evaluation.segment_steps=3"], "evaluation.segment_steps has no effect"),
    ],
)
def test_what_cannot_be_is_one_message(
    trained: Path, tmp_path: Path, call: Call, arguments: list[str], message: str
) -> None:
    root = str(write_classes(tmp_path / "classes", 2))
    command = ["diagnose", trained] if arguments[0] == "diagnose" else ["probe", trained, arguments[0]]
    status, _, errors = call(*command, *(word.replace("CLASSES", root) for word in arguments[1:]))
    assert status == 2 and message.replace("CLASSES", root) in errors and errors.count("\n") == 1


def test_a_variant_does_not_change_the_default_table(trained: Path) -> None:
    config = tiny(trained.parent / "labelled", *QUICK)
    result = probe(TASK.name, config, build_encoder(config), torch.device("cpu"))
    other = tiny(trained.parent / "labelled", *QUICK, "evaluation.segment_readout=linear4")
    changed = probe(TASK.name, other, build_encoder(other), torch.device("cpu"))
    assert (result.variant, changed.variant) == ("", "-linear4")
    assert result.value(POSITION, "miou") == changed.value(POSITION, "miou")
    assert result.value(RANDOM, "miou") == pytest.approx(result.value("tiny", "miou"))  # of one seed


def test_studies_may_ask_for_it_and_compare_the_classes(trained: Path) -> None:
    def asked(figure: str) -> Study:
        settings = (f"data.root={trained.parent / 'labelled'}", *SETTINGS, "train.steps=1")
        claims = (Comparison(f"segment.{figure}", "one", ("two",), 1.0),)
        arms: dict[str, tuple[str, ...]] = {"one": (), "two": ()}
        return Study(base="photos", arms=arms, seeds=(0,), settings=settings, probes=("segment",), claims=claims)

    assert resolve(asked("iou_box")).keys() == resolve(asked("knn_miou")).keys() == {"one", "two"}
    with pytest.raises(BadInput, match=r"segment probes have no figure 'mioo' \(did you mean 'miou'"):
        resolve(asked("mioo"))


@pytest.mark.slow
def test_streets_of_photographs(real_data: Path, tmp_path: Path, call: Call) -> None:
    """On CamVid a pretrained encoder beats the position, raw patches and its random twin in both columns."""
    if not (real_data / "camvid").is_dir():
        pytest.skip(f"{real_data / 'camvid'} is not there")
    small = Path(__file__).parents[1] / "releases" / "pretrained-small.safetensors"
    settings = ("data.image_size=[48,64]", "evaluation.segment_steps=300")
    command = ("probe", small, "segment", "--data", real_data / "camvid", *settings, "--out", tmp_path / "x.json")
    status, _, errors = call(*command)
    assert status == 0, errors
    position, raw, random, own = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert own["miou"] > max(position["miou"], raw["miou"], random["miou"])
    assert own["knn_miou"] > max(raw["knn_miou"], random["knn_miou"])
