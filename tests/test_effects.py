"""A key that changes nothing is refused by name, with what it takes; and what is refused does change nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from depthjepa import cost
from depthjepa.config.effects import RULES
from depthjepa.config.reading import build_config, load_config, read_resolved
from depthjepa.config.recipe_files import read_recipe, recipe_names
from depthjepa.config.run_config import to_mapping
from depthjepa.faults import BadInput
from depthjepa.study.plan import load_study, study_names
from depthjepa.training import train
from tiny_images import write_pairs
from tiny_runs import SETTINGS, Call, metrics, tiny

PIXEL = ("guidance.kind=pixel",)
FEATURE = ("guidance.kind=feature",)
SUPERVISED = ("train.objective=supervised",)
CNN = (*PIXEL, "guidance.head=deep-cnn", "optim.head_lr=1")  # at usual rates an absent patch moves a loss by 1e-9
HOLES = ("masks.context_scale=[0.2, 0.25]", "masks.targets=1")
DEPTHFM, NETWORKS = "guidance.teacher=depthfm or depthfm-tiny", "guidance.teacher=depthfm or huggingface"
GUIDED = "guidance (guidance.kind=feature or pixel)"
READOUT = "evaluation.depth_readout=linear, linear4 or dpt"
MAE = ("masks.kind=mae",)
MULTIBLOCK = ("masks.kind=multiblock",)

# A key with a value that is not the default; beside what it is idle; beside what it has an effect; and what that takes.
TRAINED = [
    ("masks.kind=mae", SUPERVISED, (), "train.objective=jepa"),
    ("predictor.width=32", SUPERVISED, (), "train.objective=jepa"),
    ("loss.pixel=0.5", SUPERVISED, (), "train.objective=jepa"),
    ("optim.momentum=0.5", SUPERVISED, (), "train.objective=jepa"),
    ("guidance.weight=0.1", (*FEATURE, *SUPERVISED), FEATURE, "train.objective=jepa"),
    ("masks.bias=reference", MAE, (*MULTIBLOCK, "masks.min_keep=1"), "masks.kind=multiblock"),
    ("masks.context_scale=[0.5, 0.6]", MAE, MULTIBLOCK, "masks.kind=multiblock"),
    ("masks.target_scale=[0.3, 0.4]", MAE, MULTIBLOCK, "masks.kind=multiblock"),
    ("masks.target_aspect=[1.4, 1.5]", MAE, MULTIBLOCK, "masks.kind=multiblock"),
    ("masks.targets=1", MAE, MULTIBLOCK, "masks.kind=multiblock"),
    ("masks.mae_share=0.5", MULTIBLOCK, MAE, "masks.kind=mae"),
    ("masks.mae_shape=block", MULTIBLOCK, MAE, "masks.kind=mae"),
    ("loss.visible_from=0", (), ("loss.visible=1", "loss.visible_full=1"), "loss.visible above 0"),
    ("loss.visible_full=0.25", (), ("loss.visible=1", "loss.visible_from=0"), "loss.visible above 0"),
    ("loss.gaussian_directions=8", (), ("loss.gaussian=1",), "loss.gaussian above 0"),
    ("loss.spread=tokens", (), ("loss.variance=1",), "loss.variance, loss.covariance or loss.gaussian above 0"),
    (
        "guidance.fill=learned",
        (*CNN, "guidance.read=dense"),
        (*CNN, "guidance.read=both", *HOLES),
        "a head that reads beside",
    ),
    (
        "guidance.fill=learned",
        (*PIXEL, "guidance.read=both", *HOLES),
        (*CNN, "guidance.read=both", *HOLES),
        "a head that reads",
    ),
    (
        "guidance.scope=target",
        (*PIXEL, "guidance.read=dense"),
        (*PIXEL, "guidance.read=both"),
        "guidance.read=predicted",
    ),
    ("guidance.turn=[0.1, 0.2]", FEATURE, (*FEATURE, "guidance.schedule=late"), "guidance.schedule=released or late"),
    (
        "guidance.beside_weight=0.5",
        FEATURE,
        (*FEATURE, "guidance.beside=random"),
        "guidance.beside=image, random or another",
    ),
    ("init.thaw_steps=2", FEATURE, (*FEATURE, "init.frozen_steps=1"), "init.frozen_steps above 0"),
    ("train.whitening_images=8", (), FEATURE, GUIDED),
    ("optim.head_lr=0.1", (), FEATURE, GUIDED),
    ("optim.warmup_epochs=2", ("optim.warmup_steps=1",), (), "optim.warmup_steps=null"),
    ("optim.momentum=0.5", ("optim.average_over=[0.5, 1]",), (), "optim.average_over=null"),
    ("optim.final_momentum=0.5", ("optim.average_over=[0.5, 1]",), (), "optim.average_over=null"),
    ("model.size=large", (), ("model.depth=null",), "model.width or model.depth to be null"),
]
OTHERS = [
    ("evaluation.depth_steps=5", (), ("evaluation.depth_readout=dpt",), READOUT),
    ("evaluation.nearest=1", (), ("evaluation.depth_readout=linear",), READOUT),
    ("evaluation.farthest=9", (), ("evaluation.depth_readout=linear",), READOUT),
    ("loss.target_layers=[0.5, 1]", ("loss.latent=0", "loss.pixel=1"), ("loss.pixel=1",), "loss.latent above 0"),
    ("data.scenes_train=8", ("data.root=PAIRS",), ("data.root=scenes",), "scenes or scenes:SEED"),
    ("data.depth_scale=256", ("data.root=scenes",), ("data.root=PAIRS",), "an RGB-D folder"),
    ("guidance.teacher_seed=1", FEATURE, (*FEATURE, "guidance.teacher=depthfm-tiny"), DEPTHFM),
    ("guidance.teacher_layer=1", FEATURE, (*FEATURE, "guidance.teacher=huggingface"), "guidance.teacher=huggingface"),
    ("guidance.teacher_checkpoint=x", FEATURE, (*FEATURE, "guidance.teacher=depthfm"), NETWORKS),
]
CASES = [*TRAINED, *OTHERS]


def name_of(each: object) -> str:
    """A setting in the name of a test."""
    return each if isinstance(each, str) else "-"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("effects"))


def asked(pairs: Path, *settings: str) -> list[str]:
    """Settings that make a tiny run with depth, each key once; the last one holds."""
    texts = [f"data.root={pairs}", *SETTINGS, *(text.replace("PAIRS", str(pairs)) for text in settings)]
    return list({text.partition("=")[0]: text for text in texts if not text.startswith("model.size")}.values()) + [
        text for text in settings if text.startswith("model.size")
    ]


@pytest.mark.parametrize(("setting", "idle", "_", "takes"), CASES, ids=name_of)
def test_an_idle_key_is_refused_with_what_it_takes(
    setting: str, idle: tuple[str, ...], _: object, takes: str, pairs: Path
) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(BadInput, match=rf"{re.escape(key)} has no effect here: it takes .*{re.escape(takes)}"):
        build_config({}, asked(pairs, *idle, setting))


@pytest.mark.parametrize(("setting", "_", "beside", "takes"), CASES, ids=name_of)
def test_what_it_takes_is_what_it_says(
    setting: str, _: object, beside: tuple[str, ...], takes: str, pairs: Path
) -> None:
    build_config({}, asked(pairs, *beside, setting))


def test_every_rule_has_a_case() -> None:
    keys = {setting.partition("=")[0] for setting, *_ in CASES}
    for rule in RULES:
        for key in rule.keys:
            assert (
                key in keys
                or any(each.startswith(key) for each in keys if key.endswith("."))
                or (key == "optim.average_over")
            ), key


def losses(pairs: Path, place: Path, *settings: str) -> list[dict[str, float]]:
    """Losses of three steps with settings that nobody asked whether they have an effect."""
    content = to_mapping(tiny(pairs, "train.steps=3"))
    for text in settings:
        key, _, value = text.partition("=")
        part, name = key.split(".")
        content[part][name] = yaml.safe_load(value)
    train(read_resolved(content)[0], place, say=lambda _: None)
    return [{name: value for name, value in row.items() if name.startswith("loss")} for row in metrics(place)]


@pytest.mark.parametrize(("setting", "idle", "beside", "_"), TRAINED, ids=name_of)
def test_what_is_refused_changes_no_loss_and_what_is_not_changes_one(
    setting: str,
    idle: tuple[str, ...],
    beside: tuple[str, ...],
    _: object,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "estimate", lambda *_: "")
    monkeypatch.setattr("depthjepa.run.summary.write_pictures", lambda *_: None)
    assert losses(pairs, tmp_path / "idle", *idle, setting) == losses(pairs, tmp_path / "idle without", *idle)
    assert losses(pairs, tmp_path / "acts", *beside, setting) != losses(pairs, tmp_path / "without", *beside)


def test_shipped_recipes_and_studies_ask_for_nothing_idle() -> None:
    """Loading refuses idle keys; arms are settings of their own."""
    for recipe in recipe_names():
        load_config(recipe)
    for study in study_names():
        asked_for = load_study(study)
        for arm in asked_for.arms.values():
            build_config(read_recipe(asked_for.base), asked_for.settings, arm)


def test_settings_may_switch_off_what_a_recipe_says(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("loss: {gaussian: 1.0, gaussian_directions: 8}\n")
    assert load_config(recipe, ["loss.gaussian=0"]).loss.gaussian == 0
    recipe.write_text("loss: {gaussian_directions: 8}\n")
    with pytest.raises(
        BadInput, match=r"loss\.gaussian_directions has no effect here: it takes loss\.gaussian above 0"
    ):
        load_config(recipe, ["seed=1"])
    assert load_config(recipe, ["loss.gaussian=1"]).loss.gaussian_directions == 8


def test_a_size_takes_the_place_of_a_recipe_s_widths() -> None:
    shape = load_config("photos", ["data.root=scenes", "model.size=small"]).model.shape
    assert (shape.width, shape.depth, shape.heads) == (384, 12, 6)
    assert load_config("photos", ["model.size=small", "model.depth=3"]).model.shape.depth == 3


def test_null_takes_something_away_and_is_never_idle() -> None:
    assert build_config({}, ["guidance.kind=feature", "guidance.teacher_checkpoint=null"]).guidance.kind == "feature"


def test_a_key_given_twice_is_refused(call: Call) -> None:
    status, _, said = call("train", "photos", "optim.lr=1e-3", "seed=1", "optim.lr=1e-4")
    assert (status, said) == (2, "depthjepa: optim.lr: given more than once, and only one of them can hold\n")


def test_a_size_of_images_for_a_cache_takes_a_cache(call: Call, tmp_path: Path, pairs: Path) -> None:
    settings = [*SETTINGS, "guidance.kind=feature", "guidance.teacher=depthfm-tiny", "guidance.teacher_size=64"]
    status, _, said = call("train", "photos", f"data.root={pairs}", *settings, "--out", tmp_path / "run")
    assert status == 2 and "guidance.teacher_size=64 has no effect here: it takes guidance.cache" in said


def test_resuming_takes_a_run(call: Call, tmp_path: Path) -> None:
    status, _, said = call("train", "photos", "data.root=scenes", "--out", tmp_path / "none", "--resume")
    assert status == 2 and f"--resume: there is no run in {tmp_path / 'none'}" in said
    assert not (tmp_path / "none").exists()


def test_recipes_for_data_of_one_s_own_ask_for_them(call: Call, tmp_path: Path) -> None:
    for recipe in ("photos", "rgbd", "rgbd-pixel"):
        status, _, said = call("train", recipe, "--out", tmp_path / recipe)
        assert status == 2 and "data.root is empty: say which data (data.root=" in said


def test_demo_refuses_settings_that_change_none_of_its_runs(call: Call, tmp_path: Path) -> None:
    status, _, said = call("demo", "loss.gaussian_directions=8", "--out", tmp_path / "demo")
    assert status == 2 and "loss.gaussian_directions has no effect here" in said


@pytest.mark.parametrize(
    ("task", "setting", "reader"),
    [
        ("knn", "evaluation.depth_readout=dpt", "depth"),
        ("depth", "evaluation.neighbours=5", "knn"),
        ("mlp", "evaluation.linear_protocol=sweep", "linear"),
        ("linear", "evaluation.probe_epochs=5", "mlp or linear with evaluation.linear_protocol=sweep"),
        ("linear", "evaluation.attentive_lr=1e-2", "attentive"),
    ],
)
def test_a_probe_refuses_what_it_does_not_read(
    task: str, setting: str, reader: str, call: Call, photographs: Path
) -> None:
    status, _, said = call("probe", photographs, task, setting)
    key = setting.partition("=")[0]
    assert status == 2 and f"{key} has no effect on {task} probes: the probe that reads it is {reader}" in said


def test_what_probes_read_is_no_setting_of_other_commands(call: Call, photographs: Path, tmp_path: Path) -> None:
    status, _, said = call("embed", photographs, tmp_path, "--out", tmp_path / "x.npz", "evaluation.neighbours=5")
    assert status == 2 and "evaluation.neighbours has no effect on embeddings: the probe that reads it is knn" in said
    status, _, said = call("diagnose", photographs, "evaluation.gate_steps=5")
    assert status == 2 and "evaluation.gate_steps has no effect on diagnoses: the probe that reads it is gates" in said


@pytest.fixture(scope="module")
def photographs(pairs: Path) -> Path:
    """A run of one step."""
    train(tiny(pairs, "train.steps=1"), pairs.parent / "photographs", say=lambda _: None)
    return pairs.parent / "photographs"
