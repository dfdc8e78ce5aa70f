"""Which shipped recipes set a key to another value than its default, in as few words as say it exactly.

A `*` in a name stands for one or more words between hyphens, as `paper-*-small`; `A but B and C` is A without these.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from depthjepa.config.reading import load_config
from depthjepa.config.recipe_files import recipe_names
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.guidance.config import KINDS
from depthjepa.logbook import flatten

OWN = ("name", "about.")  # beginnings of keys that each recipe has for itself
STARS = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that is not a key's default, and the recipes that have it, in words."""

    recipes: str
    value: Any


@functools.cache
def _recipes() -> dict[str, RunConfig]:
    return {name: load_config(name) for name in recipe_names()}


@functools.cache
def settings_of_recipes(guidance: str = "") -> Mapping[str, list[Setting]]:
    """By key, what recipes set otherwise than by default, the value of most recipes first.

    `guidance`: only the recipes of this kind of guidance, against its defaults.
    """
    recipes = {name: config for name, config in _recipes().items() if guidance in ("", config.guidance.kind)}
    defaults = flatten(to_mapping(RunConfig(guidance=KINDS[guidance]()) if guidance else RunConfig()))
    found: dict[str, dict[str, tuple[Any, set[str]]]] = {}
    for name, config in recipes.items():
        for key, value in flatten(to_mapping(config)).items():
            if key in defaults and value != defaults[key] and not key.startswith(OWN):
                found.setdefault(key, {}).setdefault(repr(value), (value, set()))[1].add(name)
    return {
        key: [
            Setting(in_words(names, recipe_names()), value)
            for value, names in sorted(values.values(), key=lambda each: (-len(each[1]), min(each[1])))
        ]
        for key, values in found.items()
    }


def in_words(chosen: Set[str], names: Sequence[str]) -> str:
    """Some of the names in few words: patterns that no other name fits, and single names."""
    patterns, absent = _patterns(tuple(names)), set(names) - chosen
    if not absent:
        return "all"
    found = _few(chosen, patterns)
    if len(absent) < len(chosen) and len(without := _few(absent, patterns)) < len(found):
        return f"all but {' and '.join(without)}"
    return ", ".join(sorted(found))


def _few(chosen: Set[str], patterns: Mapping[str, Set[str]]) -> list[str]:
    """Patterns and names, greedily few, that cover what is chosen and nothing else."""
    terms: dict[str, Set[str]] = {name: {name} for name in chosen}
    for pattern, fits in patterns.items():
        if pattern.startswith("*"):
            continue
        if fits <= chosen:
            terms[pattern] = fits
        elif len(beside := fits - chosen) <= len(fits & chosen):
            # Within a pattern, an exception may begin with any word: `paper-* but *-small`.
            excepted = [other for other, same in patterns.items() if same & fits == beside]
            for other in sorted(excepted, key=_short)[:1] or (beside if len(beside) == 1 else ()):
                terms[f"{pattern} but {other}"] = fits & chosen
    left, found = set(chosen), []
    while left:
        # An exception counts as half a term.
        best = min(terms, key=lambda term: (-len(terms[term] & left) / (1.5 if " " in term else 1), _short(term)))
        found.append(best)
        left -= terms[best]
    for term in list(found):  # the first ones may be covered by later ones
        others = [terms[other] for other in found if other != term]
        if terms[term] <= set().union(*others):
            found.remove(term)
    return found


def _short(term: str) -> tuple[int, int, str]:
    return term.count("*"), len(term), term


@functools.cache
def _patterns(names: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Patterns that two or more names fit, and the names that fit them."""
    found: dict[str, set[str]] = {}
    for name in names:
        for pattern in _patterns_of(tuple(name.split("-"))):
            found.setdefault("-".join(pattern), set()).add(name)
    return {pattern: frozenset(fits) for pattern, fits in found.items() if len(fits) > 1}


def _patterns_of(words: tuple[str, ...], stars: int = STARS) -> Iterator[tuple[str, ...]]:
    """The words with up to that many stretches of them as `*`; at most all of them."""
    yield words
    if stars:
        for first, last in itertools.combinations(range(len(words) + 1), 2):
            between = words[last : last + 1]  # a word stands between two stars
            for rest in _patterns_of(words[last + 1 :], stars - 1):
                yield (*words[:first], "*", *between, *rest)
