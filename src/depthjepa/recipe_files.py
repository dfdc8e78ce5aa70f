"""Recipes as files: shipped ones by name, one's own by path, and families of them in one file.

A file with `family` stands for many recipes that differ in a few choices:

    family:
      name: paper-pixel-{}-small        # {}: what was chosen, joined by -
      choices:
        - mlp: {guidance: {head: mlp}}  # one of these ...
          cnn: {guidance: {head: cnn}}
        - target: {...}                 # ... with one of these
          full: {...}

What is chosen is laid over the rest of the file.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from depthjepa.faults import BadInput, nearest


def recipe_names() -> list[str]:
    """Names of the shipped recipes, those of families among them."""
    return sorted(_shipped())


def families() -> dict[str, list[str]]:
    """Families of the shipped recipes: their name with the choices in place, and the names that they stand for."""
    found: dict[str, list[str]] = {}
    for name, (file, _) in sorted(_shipped().items()):
        family = _content(file.read_text(), file.name).get("family")
        if family:
            choices = "-".join("{" + "|".join(each) + "}" for each in family["choices"])
            found.setdefault(family["name"].format(choices), []).append(name)
    return found


def recipe_text(name: str) -> str:
    """Text of a shipped recipe; raises `BadInput` with the nearest name."""
    shipped = _shipped()
    if name not in shipped:
        raise BadInput(f"there is no recipe {name!r}{nearest(name, sorted(shipped))}; `depthjepa recipes` lists them")
    file, chosen = shipped[name]
    text = file.read_text()
    if not chosen:
        return str(text)
    content = _content(text, file.name)
    choices = content.pop("family")["choices"]
    for which, each in zip(chosen, choices, strict=True):
        content = _laid_over(content, each[which] or {})
    remarks = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    return remarks + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """Read a recipe's content: a YAML file where the argument ends so or has a folder, else a shipped one."""
    path = Path(recipe)
    if (path / "config.yaml").is_file():
        raise BadInput(
            f"{path} is a run: go on with it by `depthjepa train {path}/config.yaml --out {path} --resume`, or repeat "
            f"it by `depthjepa train {path}/config.yaml --out ELSEWHERE`"
        )
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise BadInput(f"there is no recipe file {path}")
        try:
            text = path.read_text()
        except UnicodeDecodeError as fault:
            raise BadInput(f"{path} is not a text file: a recipe is YAML") from fault
    else:
        text = recipe_text(str(recipe))
    return _content(text, str(recipe))


def _content(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as fault:
        raise BadInput(f"{name} is not YAML: {fault}") from fault
    if not isinstance(content, dict):
        raise BadInput(f"{name} does not hold keys and values")
    return content


@functools.cache
def _shipped() -> dict[str, tuple[Any, tuple[str, ...]]]:
    """File of each shipped recipe, and what is chosen of a family (nothing of a recipe by itself)."""
    found: dict[str, tuple[Any, tuple[str, ...]]] = {}
    for file in (resources.files("depthjepa") / "recipes").iterdir():
        if not file.name.endswith(".yaml"):
            continue
        text = file.read_text()
        family = _content(text, file.name)["family"] if "\nfamily:" in text else None
        if family is None:
            found[file.name.removesuffix(".yaml")] = file, ()
        else:
            for chosen in itertools.product(*family["choices"]):
                found[family["name"].format("-".join(chosen))] = file, chosen
    return found


def _laid_over(content: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
