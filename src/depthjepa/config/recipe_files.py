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
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from depthjepa.faults import BadInput, nearest

MERGE = "tag:yaml.org,2002:merge"  # of `<<`


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


def of_size(recipe: str, size: str) -> str:
    """The name of a shipped recipe at a size (`photos`, `base` -> `photos-base`); raises `BadInput` with the sizes."""
    sizes = {
        chosen[0]: name
        for name, (file, chosen) in _shipped().items()
        if chosen and _content(file.read_text(), file.name)["family"]["name"] == f"{recipe}-{{}}"
    }
    if not sizes:
        raise BadInput(f"--size: recipe {recipe} has no sizes; photos and rgbd have, others set model.size=NAME")
    if size not in sizes:
        raise BadInput(f"--size {size}{nearest(size, sizes)}: {recipe} comes as {', '.join(sizes)}")
    return sizes[size]


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
        return _content(read_text(path, "recipe"), str(recipe))
    if path.exists() and str(recipe) not in _shipped():
        raise BadInput(
            f"{path} is no recipe: a file of one ends in .yaml, and `depthjepa recipes` lists the shipped ones"
        )
    return _content(recipe_text(str(recipe)), str(recipe))


def read_text(path: Path, what: str) -> str:
    """The text of a recipe or study file (`what`, for messages); raises `BadInput`."""
    if path.is_dir():
        raise BadInput(f"{path} is a folder, not a {what} file")
    if not path.is_file():
        beside = [str(each) for each in path.parent.glob("*.y*ml")]
        raise BadInput(f"there is no {what} file {path}{nearest(str(path), beside)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise BadInput(f"{path} is not a text file: a {what} is YAML") from fault
    except OSError as fault:
        raise BadInput(f"{path} cannot be read: {fault.strerror}") from fault


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a key that is given twice is a fault: one of its values would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in seen:
                    fault = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, fault, key.start_mark)
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


class OddNumber(yaml.constructor.ConstructorError):
    """Digits of which YAML makes another number than they look like."""


def _whole_number(loader: _EachKeyOnce, node: yaml.ScalarNode) -> int:
    number = int(loader.construct_yaml_int(node))
    if re.fullmatch(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+)", node.value) and number:
        problem = f'{node.value} is {number} in YAML: write {number}, or "{node.value}" in quotes for a text'
        raise OddNumber(None, None, problem, node.start_mark)
    return number


_EachKeyOnce.add_constructor("tag:yaml.org,2002:int", _whole_number)


def parse(text: str) -> Any:
    """The content of a YAML text; raises `yaml.YAMLError`, and ValueError for a date that there is not.

    Among them `OddNumber`: 010 is 8 in YAML, and 1:30 is 90.
    """
    return yaml.load(text, _EachKeyOnce)


def read_yaml(text: str, name: str) -> Any:
    """The content of a YAML text; raises `BadInput` in one line that names the place."""
    try:
        return parse(text)
    except (yaml.YAMLError, ValueError) as fault:
        mark = getattr(fault, "problem_mark", None) or getattr(fault, "context_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(fault, "problem", None) or " ".join(str(fault).split())
        what = name if isinstance(fault, OddNumber) else f"{name} is not YAML"
        raise BadInput(f"{what}{place}: {problem}") from fault


def _content(text: str, name: str) -> dict[str, Any]:
    content = read_yaml(text, name) or {}
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
