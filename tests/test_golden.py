"""Golden runs: twenty steps of each method, whose losses no change may move without saying why.

`tools/compare_losses.py` compares two commits on one machine to the bit; here a machine is compared with the one that
wrote the files. Set DEPTHJEPA_WRITE_GOLDEN to write them anew, and say in the commit why they moved.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from depthjepa import cost
from depthjepa.config.reading import build_config
from depthjepa.config.recipe_files import read_recipe
from depthjepa.training import train
from tiny_images import write_pairs
from tiny_runs import metrics

FOLDER = Path(__file__).with_name("golden")
RECIPES = sorted(FOLDER.glob("*.yaml"))
WRITE = "DEPTHJEPA_WRITE_GOLDEN"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_no_loss_has_moved(recipe: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    config = build_config(read_recipe(recipe))
    if config.data.root == "PAIRS":
        config = build_config(read_recipe(recipe), [f"data.root={pairs}"])
    train(config, tmp_path / "run", say=lambda _: None)
    found = [{key: value for key, value in row.items() if key.startswith("loss")} for row in metrics(tmp_path / "run")]
    file = recipe.with_suffix(".txt")
    if WRITE in os.environ:
        lines = [" ".join(found[0]), *(" ".join(f"{value:.9g}" for value in row.values()) for row in found)]
        file.write_text("\n".join(lines) + "\n")
    names, *rows = (line.split() for line in file.read_text().splitlines())
    assert len(rows) == len(found) == 20
    for row, golden in zip(found, rows, strict=True):
        assert list(row) == names
        assert list(row.values()) == pytest.approx([float(value) for value in golden], rel=1e-5, abs=1e-7)
