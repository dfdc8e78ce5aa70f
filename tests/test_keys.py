"""The list of keys is whole and true: all keys, each with a meaning, a type in words and the default that it has."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import runpy
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter

from depthjepa.config.keys import SHORT, Key, listings, sections_of, words, written
from depthjepa.config.reading import build_config, build_fit, load_config
from depthjepa.config.recipe_files import recipe_names
from depthjepa.config.recipe_values import in_words
from depthjepa.config.run_config import FIT_DEFAULTS, RunConfig, TeacherFitConfig, keys, to_mapping
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.evaluation import attentive_probe, depth_readouts, during_training
from depthjepa.faults import BadInput
from depthjepa.guidance.config import KINDS
from depthjepa.guidance.teachers.depthfm.network import STRIDE
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.logbook import flatten
from depthjepa.loggers.table import LOGGERS
from depthjepa.study.claims import Comparison
from depthjepa.study.keys import study_listing
from depthjepa.study.plan import Study
from tiny_runs import Call

ROOT = Path(__file__).parents[1]
RUN, FIT = sections_of(RunConfig), sections_of(TeacherFitConfig, FIT_DEFAULTS)
STUDY = study_listing().sections
ALL = [key for section in (*RUN, *FIT, *STUDY) for key in section.keys]


def the(name: str, needs: str = "") -> Key:
    (found,) = [key for section in RUN for key in section.keys if key.name == name and section.needs == needs]
    return found


@pytest.mark.parametrize(("kind", "sections"), [(RunConfig, RUN), (TeacherFitConfig, FIT)])
def test_every_key_is_listed(kind: type, sections: list) -> None:
    assert {key.name for section in sections for key in section.keys} == set(keys(kind))


@pytest.mark.parametrize("key", ALL, ids=lambda key: key.name)
def test_every_key_has_a_short_meaning(key: Key) -> None:
    assert key.meaning.endswith(".")
    assert 5 < len(key.meaning) <= 160


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("evaluation.train_images", during_training.TRAIN_IMAGES),
        ("evaluation.val_images", during_training.VAL_IMAGES),
        ("evaluation.attentive_lr", attentive_probe.BATCH),
        ("evaluation.depth_steps", depth_readouts.BATCH),
        ("fit.autoencoder_crop", STRIDE),
    ],
)
def test_figures_that_a_meaning_quotes_are_the_code_s(name: str, figure: int) -> None:
    (key,) = [key for key in ALL if key.name == name]
    assert re.search(rf"\b{figure}\b", key.meaning)


@pytest.mark.parametrize("kind", KINDS)
def test_printed_defaults_give_the_default_configuration(kind: str) -> None:
    """Each set alone and all set together, so that a default that is refused, or means another value, is found."""
    needed = f"guidance.kind={kind}"
    sections = [section for section in RUN if section.needs in ("", needed)]
    settings = [f"{key.name}={key.default}" for section in sections for key in section.keys]
    assert build_config({}, [*settings, needed]) == build_config({}, [needed])


def test_printed_defaults_of_a_fit_give_its_default_configuration() -> None:
    settings = [f"{key.name}={key.default}" for section in FIT for key in section.keys]
    assert build_fit({}, settings) == build_fit(FIT_DEFAULTS)
    assert build_fit({}, settings) != build_fit({})  # the command's own defaults are the printed ones


def test_keys_of_a_kind_of_guidance_are_refused_for_the_others() -> None:
    kinds = [section for section in RUN if section.needs]
    assert {section.needs for section in kinds} == {"guidance.kind=feature", "guidance.kind=pixel"}
    for section in kinds:
        for key in section.keys:
            with pytest.raises(BadInput, match=f"{key.name} is for .*{section.needs}"):
                build_config({}, [f"{key.name}={key.default}", "guidance.kind=none"])


def test_every_key_of_a_study_file_is_listed_and_its_default_holds() -> None:
    study, claim = STUDY
    given = {"base": "demo", "arms": {"a": ()}, "seeds": (0,)}
    assert [key.name for key in study.keys] == [each.name for each in dataclasses.fields(Study)]
    assert [key.name for key in claim.keys] == [f"claims.{each.name}" for each in dataclasses.fields(Comparison)]
    assert {key.name for key in study.keys if not key.default} == given.keys()
    printed = {key.name: json.loads(key.default) for key in study.keys if key.default and key.name != "name"}
    assert Study(**given, name="study", **printed) == Study(**given)


def test_choices_that_are_rows_are_those_of_the_table() -> None:
    for key, table in (("guidance.teacher", TEACHERS), ("data.kind", LAYOUTS), ("train.loggers", LOGGERS)):
        offered = the(key, "guidance.kind=feature" if key.startswith("guidance") else "").type
        assert " | ".join(table.names) in offered


def test_keys_that_a_fit_shares_with_a_run_are_listed_once() -> None:
    run, fit = listings()
    of_run = {key for section in run.sections for key in section.keys}
    of_fit = {key for section in fit.sections for key in section.keys}
    assert not of_run & of_fit
    assert {key.name for key in of_fit if key.name.startswith("data.")} == {
        f"data.{name}" for name in FIT_DEFAULTS["data"]
    }


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (int, "whole number"),
        (PositiveInt, "whole number >= 1"),
        (Annotated[int, Field(ge=0, le=9)], "whole number >= 0 and <= 9"),
        (Annotated[int, Field(gt=0, multiple_of=32)], "whole number >= 1, a multiple of 32"),
        (PositiveFloat, "number > 0"),
        (Annotated[float, Field(ge=0, lt=1)], "number >= 0 and < 1"),
        (Annotated[float, Field(gt=2.5)] | None, "number > 2.5, or null"),
        (str | None, "text, or null"),
        (dict[str, tuple[str, ...]], "lists of texts by name"),
        (bool, "true or false"),
        (Literal["a"], "a"),
        (Literal["a", "b-c"], "one of a | b-c"),
        (Literal["a", "b"] | None, "one of a | b, or null"),
        (tuple[float, float], "list of 2 numbers"),
        (tuple[Literal["a", "b"], ...], "list of a | b"),
        (Annotated[tuple[PositiveInt, ...], Field(min_length=1)], "list of 1 or more whole numbers >= 1"),
        (PositiveInt | tuple[str, ...] | None, "whole number >= 1, or list of texts, or null"),
    ],
)
def test_types_are_said_in_plain_words(annotation: object, said: str) -> None:
    assert words(TypeAdapter(annotation).json_schema()) == said


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (False, "false"), (1e-6, "1e-06"), ("", '""'), ("scenes", "scenes"), ([0.3, 1.0], "[0.3, 1.0]")],
)
def test_values_are_written_as_in_a_recipe(value: object, text: str) -> None:
    assert written(value) == text


def test_the_page_is_the_code_s() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "keys.py"))["page"]()
    assert page == (ROOT / "docs" / "keys.md").read_text(), "docs/keys.md is stale: python tools/keys.py --write"


def set_by_recipes() -> dict[tuple[str, str], str]:
    """What docs/keys.md says that recipes set otherwise: (recipe, key) to the value, as it is written."""
    found: dict[tuple[str, str], str] = {}
    for key, said in re.findall(r"^- `([\w.]+)`: (.*)$", (ROOT / "docs" / "keys.md").read_text(), re.MULTILINE):
        for names, value in re.findall(r"([^`]+) `([^`]*)`(?:; |$)", said.replace("\\", "")):
            for name in expanded(names):
                assert (name, key) not in found, f"{key} of {name} is said twice"
                found[name, key] = value
    return found


def expanded(words: str) -> set[str]:
    """The recipes that words such as `paper-* but *-small, photos` or `all but demo and rgbd` speak of."""
    found: set[str] = set()
    for term in words.split(", "):
        pattern, _, exceptions = term.partition(" but ")
        fitting = set(fnmatch.filter(recipe_names(), "*" if pattern == "all" else pattern))
        found |= fitting - {name for each in exceptions.split(" and ") for name in fnmatch.filter(fitting, each)}
        assert fitting, f"no recipe is called {pattern}"
    return found


@pytest.mark.parametrize("name", [each for each in recipe_names() if "-pixel-" not in each or "mlp-full" in each])
def test_the_page_says_what_each_recipe_sets(name: str) -> None:
    """What is said to be set has that value in the recipe, and the others have their default."""
    config, said = (
        load_config(name),
        {key: value for (recipe, key), value in set_by_recipes().items() if recipe == name},
    )
    values = flatten(to_mapping(config))
    defaults = flatten(to_mapping(RunConfig(guidance=KINDS[config.guidance.kind]())))
    defaults["guidance.kind"] = RunConfig().guidance.kind
    others = {key for key in values if values[key] != defaults[key] and key != "name" and not key.startswith("about.")}
    assert said.keys() == others
    for key, value in said.items():
        full = written(values[key])
        assert full == value or (value.endswith("…") and len(value) == SHORT and full.startswith(value[:-1]))


NAMES = ["a-x-1", "a-x-2", "a-y-1", "a-y-2", "b", "b-p", "b-q", "b-r", "b-small", "c-x-1-small", "d-z-1-small"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (NAMES, "all"),
        (NAMES[1:], "all but a-x-1"),
        (["b", "c-x-1-small", "d-z-1-small"], "b, c-x-1-small, d-z-1-small"),
        (NAMES[:4], "a-*"),
        (["a-x-1", "a-x-2"], "a-x-*"),
        (["a-x-1", "a-y-1", "b"], "a-*-1, b"),
        (["a-x-1", "a-y-1"], "a-*-1"),
        (["b-p", "b-q", "b-r"], "b-* but *-small"),
        (["b-p", "b-q", "b-small"], "b-* but b-r"),
        (["b"], "b"),
    ],
)
def test_recipes_are_named_in_few_words(chosen: list[str], said: str) -> None:
    assert in_words(set(chosen), NAMES) == said


def test_what_recipes_set_is_printed_whole_for_one_key(call: Call) -> None:
    _, output, _ = call("recipes", "--keys", "guidance.teacher_vae")
    names, value = "paper-feature-pretrained, paper-feature-scratch, paper-feature-scratch-120", "stable-diffusion-v1-5"
    assert f"{names} {value}/{value}" in " ".join(output.split())
    _, output, _ = call("recipes", "--keys")
    assert f"{value}/{value}" not in output


def cells(output: str) -> list[list[str]]:
    """Cells of the printed tables, row by row, put together again where they were wrapped; without spaces."""
    rows: list[list[str]] = []
    starts: list[int] = []
    for line in output.splitlines():
        if re.fullmatch(r"key +type +default +meaning *", line):
            starts = [line.index(head) for head in ("key", "type", "default", "meaning")]
        elif not line.strip():
            starts = []  # a table has no empty line
        elif starts:
            parts = [line[a:b].replace(" ", "") for a, b in zip(starts, [*starts[1:], None], strict=True)]
            if parts[0]:
                rows.append(parts)
            else:
                rows[-1] = [before + after for before, after in zip(rows[-1], parts, strict=True)]
    return rows


def test_the_command_prints_all_of_it_in_100_columns(call: Call) -> None:
    status, output, _ = call("recipes", "--keys")
    assert status == 0
    assert max(map(len, output.splitlines())) <= 100
    expected = [
        key for listing in listings(more=[study_listing()]) for section in listing.sections for key in section.keys
    ]
    assert cells(output) == [
        [text.replace(" ", "") for text in (key.name, key.type, key.default or "required", key.meaning)]
        for key in expected
    ]


@pytest.mark.parametrize(
    ("word", "first", "last"),
    [
        ("masks", "masks.kind", "masks.mae_shape"),
        ("guidance", "guidance.kind", "guidance.detached"),
        ("optim.lr", "optim.lr", "optim.lr"),
        ("data", "data.kind", "data.flip"),  # a run's, then what a fit has otherwise
        ("fit.kl", "fit.kl", "fit.kl"),
        ("claims.margin", "claims.margin", "claims.margin"),
    ],
)
def test_one_section_or_key_can_be_asked_for(call: Call, word: str, first: str, last: str) -> None:
    _, output, _ = call("recipes", "--keys", word)
    printed = re.findall(r"^[a-z_]+\.[a-z_0-9]+(?= )", output, re.MULTILINE)
    assert (printed[0], printed[-1]) == (first, last)
    assert all(name == word or name.startswith(f"{word}.") for name in printed)


@pytest.mark.parametrize(("word", "near"), [("gidance", "guidance"), ("optim.lrr", "optim.lr"), ("fitt", "fit")])
def test_a_section_that_is_not_there_is_refused_with_the_nearest(call: Call, word: str, near: str) -> None:
    status, _, fault = call("recipes", "--keys", word)
    assert status == 2
    assert f"there is no section or key {word!r} (did you mean {near!r}?): sections are about, data, " in fault
