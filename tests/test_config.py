"""Configuration: every fault at once, each with the nearest valid choice; recipes load and build."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from depthjepa.config.reading import build_config, load_config, read_resolved
from depthjepa.config.recipe_files import of_size, recipe_names, recipe_text
from depthjepa.config.run_config import RunConfig, TrainConfig, differences, keys, to_mapping
from depthjepa.faults import BadInput, nearest
from depthjepa.guidance.config import FeatureGuidance, PixelGuidance
from depthjepa.logbook import flatten
from depthjepa.masks import sample_masks
from depthjepa.method import build_method, build_teacher
from tiny_runs import recipes_by_choice


def refusal(*overrides: str, **content: object) -> str:
    with pytest.raises(BadInput) as caught:
        build_config(content, overrides)
    return str(caught.value)


def test_all_unknown_keys_are_named_at_once_each_with_its_nearest():
    text = refusal("optim.lrr=1", "modl.size=tiny", train={"stepz": 4}, guidence={"kind": "none"})
    for given, meant in [
        ("optim.lrr", "optim.lr"),
        ("modl.size", "model.size"),
        ("train.stepz", "train.steps"),
        ("guidence.kind", "guidance.kind"),
    ]:
        assert f"unknown key {given!r} (did you mean {meant!r}?)" in text


def test_nearest_stays_silent_where_nothing_is_near():
    assert nearest("zzzz", keys(RunConfig)) == ""
    assert refusal("qqqq=1") == "configuration: unknown key 'qqqq'"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.size=tniy", "model.size='tniy': should be 'tiny', 'small', .*did you mean 'tiny'"),
        ("model.size=gaint", r"did you mean 'giant'"),
        (
            "guidance.kind=featur",
            r"guidance.kind='featur': should be 'none', 'feature' or 'pixel' \(did you mean 'feature'\?\)",
        ),
        ("masks.bias=refrence", r"should be 'unbiased' or 'reference' \(did you mean 'reference'\?\)"),
        ("train.steps=many", "train.steps='many': should be a valid integer"),
        ("train.steps=1.5", "train.steps=1.5: should be a valid integer"),
        ("train.batch_size=0", "train.batch_size=0: should be greater than 0"),
        ("optim.lr=fast", "optim.lr='fast': should be a valid number"),
        ("optim.lr=.nan", "optim.lr=nan: should be a finite number"),
        ("optim.lr=-1e-3", "optim.lr='-1e-3': should be greater than 0"),
        ("optim.momentum=1.1", "optim.momentum=1.1: should be less than or equal to 1"),
        ("optim.stretch=0.5", "optim.stretch=0.5: should be greater than or equal to 1"),
        ("optim.betas=[0.9]", r"optim.betas=\[0.9\]: too few values"),
        ("data.flip=maybe", "data.flip='maybe': should be a valid boolean"),
        (
            "data.image_size=[64, wide]",
            r"data.image_size=\[64, 'wide'\]: should be one side \[px\], or height and width",
        ),
        ("model.patch_size=0", "model.patch_size=0: should be greater than 0"),
        ("model.depth=0", "model.depth=0: should be greater than 0"),
        ("masks.targets=0", "masks.targets=0: should be greater than 0"),
        ("masks.target_scale=[0.3, 0.2]", "the first number must not be larger than the second"),
        ("masks.mae_share=1.2", "masks.mae_share=1.2: should be less than or equal to 1"),
        ("seed=", r"seed= is empty: give a value"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_should_be(override, said):
    with pytest.raises(BadInput, match=said):
        build_config({}, [override])


def test_all_wrong_values_are_named_at_once_by_the_keys_of_the_user():
    text = refusal("model.size=tniy", "train.steps=x", "data.image_size=big", "data.classes=0")
    named = {part.split(":")[0] for part in text.removeprefix("configuration: ").split("; ")}
    assert named == {"model.size='tniy'", "train.steps='x'", "data.image_size='big'", "data.classes=0"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.size", "'model.size' is not of the form key=value"),
        ("--lr", "'--lr' is not of the form key=value"),
        ("seed.x=1", "unknown key 'seed.x'"),
        ("model=tiny", "model is a section, not a key: give its keys, such as model.size"),
        ("=3", "'=3' is not of the form key=value"),
    ],
)
def test_overrides_that_are_none_are_refused(override, said):
    assert said in refusal(override)
    assert said in refusal(override, seed=1)


def test_deep_keys_below_a_value_are_refused():
    assert "unknown key 'model.size.x': 'size' holds no keys" in refusal("model.size.x=1", model={"size": "tiny"})


def test_overrides_win_and_the_last_layer_wins_and_the_recipe_stays_as_it_was():
    content = {"seed": 3, "model": {"size": "tiny"}}
    config = build_config(content, ["seed=4", "model.patch_size=8"], ["seed=5"])
    assert (config.seed, config.model.size, config.model.patch_size) == (5, "tiny", 8)
    assert content == {"seed": 3, "model": {"size": "tiny"}}


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1.5e-4", 1.5e-4), ("2E-3", 2e-3), (".5", 0.5), ("1", 1.0)]
)
def test_numbers_may_be_written_as_people_write_them(text, value):
    assert build_config({}, [f"optim.lr={text}"]).optim.lr == value
    assert build_config({"optim": {"lr": text}}).optim.lr == value


def test_values_of_every_kind():
    config = build_config(
        {},
        [
            "data.image_size=[64, 96]",
            "data.root=/a=b/c",
            "data.flip=true",
            "data.classes=[cat, dog]",
            "optim.clip=null",
            "train.steps=10",
            "masks.target_scale=[0.1, 0.2]",
        ],
    )
    assert config.data.image_size == (64, 96) and config.data.root == "/a=b/c" and config.data.flip is True
    assert config.data.classes == ("cat", "dog") and config.optim.clip is None
    assert config.train.steps == 10 and config.masks.target_scale == (0.1, 0.2)


def test_recipe_by_name_and_by_file_are_the_same(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text(recipe_text("demo"))
    assert load_config(file) == load_config(str(file)) == load_config("demo")
    assert load_config("demo").name == "demo" and load_config("demo", ["name=mine"]).name == "mine"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("demmo", "there is no recipe 'demmo' (did you mean 'demo'?)"),
        ("paper-feature", "(did you mean 'paper-feature-depth'?)"),
        ("nowhere.yaml", "there is no recipe file nowhere.yaml"),
        ("some/where", "there is no recipe file some/where"),
    ],
)
def test_unknown_recipes_are_refused_with_the_nearest(recipe, said):
    with pytest.raises(BadInput) as caught:
        load_config(recipe)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed: [1", "is not YAML"),
        (b"- seed\n- 1\n", "does not hold keys and values"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not a text file"),
    ],
)
def test_files_that_are_no_recipes_are_refused(tmp_path, content, said):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        load_config(file)


def test_an_empty_recipe_is_all_defaults(tmp_path):
    (tmp_path / "empty.yaml").touch()
    assert load_config(tmp_path / "empty.yaml") == build_config({"name": "empty"})


def test_the_named_recipes_are_shipped():
    assert {"demo", "photos", "rgbd", "paper-feature-depth", "paper-unguided"} <= set(recipe_names())


@pytest.mark.parametrize("recipe", recipes_by_choice())
def test_every_shipped_recipe_loads_builds_and_draws_masks(recipe):
    config = load_config(recipe, ["model.depth=1", "predictor.depth=1"])  # the widths are its own
    assert config.about.summary and config.about.source
    assert config.train.total_steps(100) > 0
    # DepthFM's weights are not at hand; its latents have as many channels as those of the depth teacher.
    own = [f"guidance.{key}" for key in ("teacher=depth", "teacher_checkpoint=null", "teacher_vae=null")]
    teacher = build_teacher(load_config(recipe, own if config.guidance.kind == "feature" else []), has_depth=True)
    build_method(config, teacher, classes=3)
    masks = sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=np.arange(4), batch_index=0)
    assert len(masks.context) == 4


def test_a_family_stands_for_every_choice_and_each_is_a_recipe_of_its_own():
    names = [name for name in recipe_names() if name.startswith("paper-pixel-") and not name.endswith("-small")]
    assert len(names) == 4 * 2 * 3
    for name in names:
        head, scope, beginning = name.removeprefix("paper-pixel-").replace("deep-cnn", "deep_cnn").split("-")
        config = load_config(name)
        assert config.guidance.head == head.replace("_", "-") and config.guidance.scope == scope
        assert config.masks.kind == ("mae" if scope == "full" else "multiblock")
        assert (config.init.checkpoint is None) == (beginning == "scratch")
        paper = config.guidance
        assert (paper.kind, paper.read, paper.target, paper.loss, paper.zoom_aware) == (
            "pixel",
            "predicted",
            "metres",
            "l1",
            False,
        )
    # What is printed is the recipe itself, choices laid in.
    text = recipe_text("paper-pixel-dpt-full-decoder-small")
    assert "family" not in yaml.safe_load(text) and text.startswith("# paper-pixel in minutes")
    assert build_config(yaml.safe_load(text)) == load_config("paper-pixel-dpt-full-decoder-small", ["name=run"])


def test_a_recipe_at_a_size_is_a_recipe_of_the_family():
    for size in ("small", "base", "large"):
        for recipe in ("photos", "rgbd"):
            config = load_config(of_size(recipe, size), ["data.root=scenes"])
            assert config.model.size == size and config.data.size == (224, 224) and config.about.choices
    with pytest.raises(BadInput, match=r"--size bse \(did you mean 'base'\?\): photos comes as small, base, large"):
        of_size("photos", "bse")
    with pytest.raises(BadInput, match="recipe demo has no sizes; photos and rgbd have"):
        of_size("demo", "base")


@pytest.mark.parametrize("recipe", recipes_by_choice())
def test_a_resolved_configuration_comes_back_the_same_through_yaml(recipe):
    config = load_config(recipe, ["data.image_size=[112, 224]", "data.classes=[a, b]", "optim.lr=1e-3"])
    content = yaml.safe_load(yaml.safe_dump(to_mapping(config)))
    assert build_config(content) == config
    of_other_kinds = set(keys(RunConfig)) - set(flatten(content))
    assert set(flatten(content)) < set(keys(RunConfig)) and all(key.startswith("guidance.") for key in of_other_kinds)


def test_differences_names_what_differs():
    first = to_mapping(load_config("demo"))
    second = to_mapping(load_config("demo", ["seed=1", "optim.lr=1", "data.image_size=[48, 48]"]))
    assert differences(first, first) == []
    assert differences(first, second) == ["data.image_size", "optim.lr", "seed"]
    assert differences({"a": 1}, {"b": {"c": 2}}) == ["a", "b.c"]


@pytest.mark.parametrize(
    ("size", "patch", "near"),
    [("100", 16, "96 x 96"), ("[60, 100]", 8, "64 x 96"), ("5", 8, "8 x 8"), ("[64, 225]", 16, "64 x 224")],
)
def test_a_patch_that_does_not_divide_the_image_is_refused_with_the_nearest_size(size, patch, near):
    config = build_config({}, [f"data.image_size={size}", f"model.patch_size={patch}"])
    with pytest.raises(BadInput, match=f"patch_size={patch} does not divide .* the nearest size .* is {near}"):
        _ = config.grid
    rows, columns = near.split(" x ")
    grid = build_config({}, [f"data.image_size=[{rows},{columns}]", f"model.patch_size={patch}"]).grid
    assert grid == (int(rows) // patch, int(columns) // patch)


def test_total_steps_needs_exactly_one_length():
    for config in (TrainConfig(), TrainConfig(epochs=1, steps=1)):
        with pytest.raises(BadInput, match=r"give one of train.epochs and train.steps"):
            config.total_steps(10)
    assert TrainConfig(steps=7).total_steps(10) == 7
    assert TrainConfig(epochs=2.5).total_steps(10) == 25
    assert TrainConfig(epochs=0.001).total_steps(10) == 1


def test_a_length_given_as_override_replaces_the_recipes():
    by_steps = load_config("photos", ["train.steps=300"]).train
    assert (by_steps.steps, by_steps.epochs) == (300, None)
    by_epochs = load_config("demo", ["train.epochs=2"]).train
    assert (by_epochs.steps, by_epochs.epochs) == (None, 2)


def test_another_kind_of_guidance_keeps_what_means_the_same_there():
    feature = load_config("demo", ["guidance.read=context", "guidance.head=conv", "guidance.weight=0.7"])
    assert isinstance(feature.guidance, FeatureGuidance)
    pixel = build_config(to_mapping(feature), ["guidance.kind=pixel"]).guidance
    assert isinstance(pixel, PixelGuidance) and pixel.weight == 0.7
    assert (pixel.read, pixel.head) == (PixelGuidance().read, PixelGuidance().head)  # of their own choices
    with pytest.raises(BadInput, match=r"guidance\.read='context': should be"):
        build_config(to_mapping(feature), ["guidance.kind=pixel", "guidance.read=context"])


def test_a_run_from_before_feature_guidance_could_read_otherwise_reads_what_it_did():
    content = to_mapping(load_config("demo", ["guidance.depth_share=1"]))
    del content["guidance"]["read"], content["guidance"]["depth_share"]
    old, lost = read_resolved(content)
    assert isinstance(old.guidance, FeatureGuidance) and not lost
    assert (old.guidance.read, old.guidance.layer_share) == ("predicted", 1.0)
    asked = build_config({"guidance": {"kind": "feature"}}, []).guidance  # of a recipe: today's default
    assert isinstance(asked, FeatureGuidance) and asked.read == "dense"
