"""What recipes advise in their remarks can be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from depthjepa.config.reading import load_config
from depthjepa.config.recipe_files import recipe_names, recipe_text
from depthjepa.method import build_method

SETTING = re.compile(r"\b([a-z]+\.[a-z_]+=)(\[[^\]]*\]|[^\s`,;()]*[^\s`,;.()])")
# What stands for the reader's own: a folder, a run.
OWN = {"data.root=": "scenes", "init.checkpoint=": "runs/mine"}


def advice(recipe: str) -> list[str]:
    """The settings that a recipe's remarks name, in order."""
    remarks = " ".join(line.lstrip("# ") for line in recipe_text(recipe).splitlines() if line.startswith("#"))
    found = [key + OWN.get(key, value) for key, value in SETTING.findall(remarks.replace("...", "n01443537"))]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if advice(name)])
def test_what_a_recipe_advises_can_be_done(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(recipe, advice(recipe))
    small = load_config(recipe, [*advice(recipe)], ["model.depth=1", "predictor.depth=1"])
    if config.guidance.kind == "none":
        build_method(small, None, classes=0)


def test_the_advice_of_photos_is_the_recipe_it_names() -> None:
    """A larger encoder on a GPU: the rate of the update, the encoder and the predictor are imagenette's."""
    ours, theirs = load_config("photos", advice("photos")), load_config("imagenette")
    assert "model.size=small" in advice("photos")
    assert (ours.model.shape, ours.predictor, ours.data.image_size) == (
        theirs.model.shape,
        theirs.predictor,
        theirs.data.image_size,
    )
    assert (ours.optim, ours.train.batch_size) == (theirs.optim, theirs.train.batch_size)
