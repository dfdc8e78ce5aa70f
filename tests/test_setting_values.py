"""Texts of settings stay what was written; in a recipe file, YAML is YAML, and a text that it changed is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from depthjepa.config.reading import build_config, load_config
from depthjepa.config.run_config import RunConfig, TeacherFitConfig, to_mapping, types
from depthjepa.faults import BadInput
from depthjepa.logbook import flatten
from tiny_images import picture, save
from tiny_runs import Call

CHANGED_BY_YAML = (
    "010",
    "2011_09_26",
    "2011-09-26",
    "yes",
    "1e3",
    "12:30",
    "0x1F",
    "-.inf",
    "a #b",
    "a: b",
    "!x",
    "&x",
)
TEXTS = [name for kind in (RunConfig, TeacherFitConfig) for name, choices in types(kind).items() if str in choices]


def value(setting: str) -> Any:
    key, content = setting.partition("=")[0], to_mapping(build_config({}, [setting]))
    return flatten(content)[key]


@pytest.mark.parametrize("text", CHANGED_BY_YAML)
def test_a_text_stays_what_was_written(text: str) -> None:
    assert value(f"name={text}") == text
    assert value(f"data.root={text}") == text
    assert value(f"data.val_list={text}") == text
    assert value(f"about.time={text}") == text
    assert value(f"data.val_prefixes={text}") == value(f"data.val_prefixes=[{text}]") == [text]
    assert value(f"data.classes={text}") == value(f"data.classes=[ {text} ,]") == [text]


def test_which_keys_are_texts_is_told_by_their_types() -> None:
    assert {"name", "about.time", "data.root", "init.checkpoint", "guidance.cache", "train.device", "fit.start"} <= {
        *TEXTS
    }
    assert not {"seed", "data.classes", "data.image_size", "guidance.control", "optim.lr"} & {*TEXTS}


def test_lists_null_and_quotes_are_written_as_ever() -> None:
    assert value("data.classes=[a, 'b,c', \"d\", o'hare, 3]") == ["a", "b,c", "d", "o'hare", "3"]
    assert value("data.classes=3") == 3
    assert value("data.classes=[3]") == ["3"]
    assert value("data.classes=null") is None
    assert value("data.classes=[null]") == ["null"]
    assert value("data.val_list=~") is None
    assert value("data.val_list=~/a") == "~/a"
    assert value("name='2024'") == "2024"
    assert value("name=null") == "null"  # a name may not be none
    assert value("data.image_size=[48,64]") == [48, 64]
    assert value("optim.lr=1e-3") == 1e-3


@pytest.mark.parametrize("text", ["010", "-017", "1:30"])
def test_a_number_that_yaml_reads_as_another_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"seed={text}: {text} is -?\d+ in YAML: write"):
        build_config({}, [f"seed={text}"])
    with pytest.raises(BadInput, match=rf"image_size=\[{text},64\]: {text} is -?\d+ in YAML"):
        build_config({}, [f"data.image_size=[{text},64]"])
    file = tmp_path / "mine.yaml"
    file.write_text(f"data:\n  classes: {text}\n")
    with pytest.raises(BadInput, match=rf"mine\.yaml, line 2, column 12: {text} is -?\d+ in YAML: write"):
        load_config(file)


@pytest.mark.parametrize(
    "content",
    [
        "name: 2024",
        "name: no",
        "name: 2011-09-26",
        "data: {root: 2011_09_26}",
        "data: {val_prefixes: 2011_09_26}",
        "data: {val_prefixes: [a, 1.5]}",
        "data: {classes: yes}",
        "data: {classes: [10, a]}",
        "about: {score: 0.5}",
        "init: {checkpoint: 1.0e+3}",
        "evaluation: {which: off}",
    ],
)
def test_a_file_has_to_put_such_texts_in_quotes(content: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(BadInput, match="put it in quotes: without them YAML makes a number, a date, true or false"):
        load_config(file)


def test_data_of_a_command_is_a_text(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "2011_09_26" / "a.png", picture(1))
    for name, reason in {"2011_09_26": r"data.root=2011_09_26 has none", "20110926": "no folder 20110926"}.items():
        status, _, errors = call("fit-teacher", "--data", name, "--out", "out")
        assert status == 2
        assert reason in errors
