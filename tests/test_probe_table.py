"""A probe is one row: lookup, studies, commands and reports take it from the table; columns say what they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from depthjepa.cli.arguments import ROWS
from depthjepa.columns import Column, columns_of, meaning_of
from depthjepa.config.run_config import RunConfig
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes import classification_tables, probe, table
from depthjepa.evaluation.probes.task import LABELS, Measured, Picture, Section, SharedTask, Task
from depthjepa.faults import BadInput
from depthjepa.method import build_encoder
from depthjepa.report.page import write_report
from depthjepa.runs import Run
from depthjepa.study.plan import Study, resolve
from tiny_images import write_classes, write_pairs
from tiny_runs import SETTINGS, Call, tiny

CPU = torch.device("cpu")


def page_of(tmp_path: Path, *contents: Mapping[str, Any]) -> str:
    """The report of a run that has these probe tables, without its tags."""
    run = tmp_path / "run"
    (run / "probes").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "run"}))
    for content in contents:
        (run / "probes" / f"{content['task']}.json").write_text(json.dumps(content))
    write_report([run], tmp_path / "report.html")
    return re.sub("<[^>]*>", "", (tmp_path / "report.html").read_text())


def stored(task: str, *columns: Mapping[str, str], **figures: float) -> dict[str, Any]:
    rows = [{"name": "mean map", **dict.fromkeys(figures, 0.0)}, {"name": "run", **figures}]
    return {"task": task, "data": "scenes:0", "protocol": "", "columns": columns, "rows": rows}


@pytest.mark.parametrize("task", table.TASKS, ids=lambda task: task.name)
def test_every_column_says_what_it_means(task: Task) -> None:
    assert task.title and task.about and task.columns
    for column in task.columns:
        assert column.meaning and not column.meaning.endswith("."), column.key
        assert Column.of(column.to_json()) == column
    keys = [column.key for column in task.columns]
    assert len(set(keys)) == len(keys)


def test_each_name_is_one_row_and_each_probe_a_file_of_its_own() -> None:
    names = [task.name for task in table.TASKS]
    assert len(set(names)) == len(names)
    files = {file.stem for file in Path(table.__file__).parent.glob("*.py")}
    assert {name for name in names if name in files} >= table.studied().keys()
    assert list(table.of_command("diagnose --gates")) == ["gates"]
    assert list(table.of_command("diagnose")) == ["diagnose", "guidance"]


def test_a_table_has_the_columns_that_its_rows_have_figures_for() -> None:
    columns = (Column("a", "A", "first"), Column("k_#", "k = #", "each"), Column("b", "B", "last"))
    found = columns_of(columns, [{"name": "x", "k_20": 1.0, "k_3": 2.0}, {"name": "y", "b": 0.0}])
    assert [(column.key, column.label, column.meaning) for column in found] == [
        ("k_20", "k = 20", "each"),
        ("k_3", "k = 3", "each"),
        ("b", "B", "last"),
    ]
    assert meaning_of(columns, "k_7") == "each" and meaning_of(columns, "c") == ""


def test_one_key_is_explained_by_each_task_in_its_own_words(tmp_path: Path) -> None:
    """R² within images is of log depth in one table and of the teacher's latents in another; so it was before."""
    bare = {"key": "r2_within", "label": "R² within images", "unit": "", "better": "higher"}
    tables = stored("depth", bare, r2_within=0.5), stored("guidance", bare, r2_within=0.25)
    text = page_of(tmp_path, *tables)  # as files were that did not say what a column means
    depth = text[text.index("Depth from frozen features") : text.index("What the guidance head says")]
    guidance = text[text.index("What the guidance head says") :]
    assert "R² within images: share of the log depth's variation" in depth.replace("&#x27;", "'")
    assert "log depth" not in guidance.split("What was run")[0]
    assert "R² within images: share of the variation of the teacher's latents" in guidance.replace("&#x27;", "'")


def test_a_column_s_own_words_come_first_and_alike_ones_share_a_line(tmp_path: Path) -> None:
    own = {"key": "r2_within", "label": "R²", "meaning": "as the file says"}
    text = page_of(tmp_path, stored("depth", own, r2_within=0.5))
    assert "R²: as the file says." in text and "share of the log depth" not in text
    blocks = [{"key": f"block_{n}", "label": f"block {n}", "better": "higher"} for n in range(1, 13)]
    text = page_of(tmp_path, stored("guidance-layers", *blocks, **{f"block_{n}": 0.1 for n in range(1, 13)}))
    assert text.count("block 1; …; block 12: share of the variation of the teacher") == 1
    unknown = stored("later", {"key": "r2_within", "label": "R² of a later version"}, r2_within=0.5)
    assert "R² of a later version" in page_of(tmp_path, unknown)  # a task that this version has no row for


def brightness(config: RunConfig, seen: Mapping[Any, Any]) -> Measured:
    labels = seen["train"].features.pooled.labels
    return Measured({"figure_2": float(len(labels))}, {"nothing": {"figure_2": 0.0}}, {"seen": np.ones(3)})


def drawn(runs: Sequence[Run]) -> list[Captioned]:
    return [Captioned(Figure(), f"what {run.name} planted", "nothing.") for run in runs]


PLANTED = SharedTask(
    name="planted",
    title="A planted table",
    about="what a test planted",
    columns=(Column("figure_#", "figure #", "how many images there are", "images", "higher"),),
    guesses=("nothing",),
    needs=(LABELS,),
    section=Section("A planted section", drawn),
    picture=Picture("a planted picture", lambda runs, photographs: Figure()),
    measure=brightness,
    protocol=lambda config, views, rows: f"planted on {views['train'].used} images",
)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "TASKS", (*table.TASKS, PLANTED))


@pytest.mark.usefixtures("planted")
def test_a_row_alone_makes_a_probe(tmp_path: Path, call: Call) -> None:
    config = tiny(write_classes(tmp_path / "classes"))
    result = probe("planted", config, build_encoder(config), CPU)
    count = result.value("tiny", "figure_2")
    assert count > 0 and result.table["rows"] == [
        {"name": "nothing", "figure_2": 0.0},
        {"name": RANDOM, "figure_2": count},
        {"name": "tiny", "figure_2": count},
    ]
    assert result.table["columns"] == [
        {
            "key": "figure_2",
            "label": "figure 2",
            "unit": "images",
            "better": "higher",
            "meaning": "how many images there are",
        }
    ]
    assert result.table["protocol"] == f"planted on {count:.0f} images"
    assert set(result.arrays) == {"seen", "random_seen"}
    with pytest.raises(BadInput, match=r"no probe 'plantd' \(did you mean 'planted'\?\)"):
        probe("plantd", config, build_encoder(config), CPU)
    text = page_of(tmp_path, result.table)
    assert "A planted section" in text and "what run planted" in text and "A planted table" in text
    assert "figure 2: how many images there are." in text
    assert ROWS["task"]()["planted"] == "what a test planted" and ROWS["what"]()["planted"] == "a planted picture"
    status, _, errors = call("probe", tmp_path, "plantd")
    assert status == 2 and "did you mean 'planted'" in errors


@pytest.mark.usefixtures("planted")
def test_a_row_is_validated_by_studies(tmp_path: Path) -> None:
    def asked(root: Path, probes: tuple[str, ...], **arms: tuple[str, ...]) -> Study:
        settings = (f"data.root={root}", *SETTINGS, "train.steps=1")
        return Study(base="rgbd", arms=arms or {"one": ()}, seeds=(0,), settings=settings, probes=probes)

    pairs = write_pairs(tmp_path / "pairs")
    with pytest.raises(BadInput, match=r"arm 'one': the planted probe needs labels, and .*pairs has none"):
        resolve(asked(pairs, ("planted",)))
    with pytest.raises(BadInput, match=r"no probe 'plantd' \(did you mean 'planted'\?\)"):
        resolve(asked(pairs, ("plantd",)))
    with pytest.raises(BadInput, match=r"arm 'nothing': tables have a row of this name that no run trained"):
        resolve(asked(pairs, (), nothing=()))


@pytest.mark.usefixtures("planted")
def test_a_row_shares_the_pass_of_the_others(tmp_path: Path) -> None:
    config, calls = tiny(write_classes(tmp_path / "classes")), list[int]()

    def encode(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return torch.randn(len(images), 4, 8, generator=torch.Generator().manual_seed(int(images.sum())))

    found = classification_tables(config, {"one": encode}, ["linear", "planted"])
    assert list(found) == ["linear", "planted"]
    once = sum(calls)
    classification_tables(config, {"one": encode}, ["linear"])
    assert sum(calls) == 2 * once


@pytest.mark.parametrize(("command", "names"), [("probe", ("depth:", "knn:")), ("show", ("masks:", "gates:"))])
def test_help_lists_the_rows(call: Call, command: str, names: tuple[str, ...]) -> None:
    status, output, _ = call(command, "--help")
    assert status == 0 and all(name in output for name in names)
