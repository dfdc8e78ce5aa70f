"""results/ is small, its studies add up, and README's figures are read from it."""

from __future__ import annotations

import json
import math
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FOLDERS = sorted(folder for folder in RESULTS.iterdir() if folder.is_dir())
STUDIES = sorted(file.parent.name for file in RESULTS.glob("*/study.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_has_at_most_100_kb(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 100_000


def study(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name / "study.json").read_text())
    return content


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_its_table_its_configuration_and_a_figure_of_each_column_for_each_run(name: str) -> None:
    assert {"study.md", "config.yaml"} <= {file.name for file in (RESULTS / name).iterdir()}
    content = study(name)
    asked = {(arm, seed) for arm in content["arms"] for seed in content["seeds"]}
    assert {(run["arm"], run["seed"]) for run in content["runs"]} == asked
    keys = {column["key"] for column in content["columns"]}
    assert all(set(run["figures"]) & keys for run in content["runs"])
    assert set(content["protocols"]) == {*content["probes"], *content.get("judged", {})}


@pytest.mark.parametrize("name", STUDIES)
def test_means_and_claims_are_those_of_the_runs(name: str) -> None:
    content = study(name)
    figures = {(run["arm"], run["seed"]): run["figures"] for run in content["runs"]}
    for arm, mean in content["means"].items():
        for key, told in mean["figures"].items():
            values = [figures[arm, seed][key] for seed in content["seeds"]]
            assert told["mean"] == pytest.approx(statistics.fmean(values), rel=1e-4, abs=1e-5)
            rounded = 2e-5 * max(map(abs, values))  # the file has five digits of each
            assert told["deviation"] == pytest.approx(statistics.stdev(values), rel=1e-2, abs=max(1e-4, rounded))
    for claim in content.get("claimed", []):
        arms, key = (claim["first"], claim["against"]), claim["measure"]
        first, second = ([figures[arm, seed][key] for seed in claim["seeds"]] for arm in arms)
        differences = [one - other for one, other in zip(first, second, strict=True)]
        rounded = 2e-5 * max(map(abs, (*first, *second)))
        assert claim["mean"] == pytest.approx(statistics.fmean(differences), abs=max(1e-4, rounded))
        half = (claim["high"] - claim["low"]) / 2  # a t interval: the same multiple of the error in all claims
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        kept = 1e-3 * max(abs(claim["low"]), abs(claim["high"]))  # the file has four digits of each
        assert half == pytest.approx(stats.t.ppf(0.975, len(differences) - 1) * error, rel=1e-3, abs=kept)


def test_readme_says_what_the_results_say() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "results_table.py"))
    readme = (ROOT / "README.md").read_text()
    assert tool["headline"]() in readme, "python tools/results_table.py --write"
    assert tool["table"]() in readme, "python tools/results_table.py --write"


def test_the_table_follows_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "results_table.py"))
    content = study("shortcut")
    for run in content["runs"]:
        run["figures"]["depth.r2_within"] += 0.5
    (tmp_path / "shortcut").mkdir()
    (tmp_path / "shortcut" / "study.json").write_text(json.dumps(content))
    monkeypatch.setitem(tool["Study"].__init__.__globals__, "RESULTS", tmp_path)
    assert "is 0.759 with our guidance, 0.591 without" in tool["headline"]()
