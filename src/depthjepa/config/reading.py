"""From a mapping and KEY=VALUE to a configuration, and all that is refused on the way.

Unknown keys and wrong values are reported at once, each with the nearest valid key; so is a key that changes nothing
(`effects`). Layers of KEY=VALUE lie one over the other.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from depthjepa.config.effects import refuse_idle
from depthjepa.config.old_keys import current, why_removed
from depthjepa.config.recipe_files import read_recipe
from depthjepa.config.run_config import RunConfig, TeacherFitConfig, to_mapping, types
from depthjepa.config.values import value_of
from depthjepa.faults import BadInput, nearest
from depthjepa.guidance.config import KINDS, NoGuidance
from depthjepa.logbook import flatten

IN_QUOTES = "put it in quotes: without them YAML makes a number, a date, true or false of it"
SHAPE = ("width", "depth", "heads", "hidden")  # of a model; one key, `size`, names them all

Configuration = TypeVar("Configuration", RunConfig, TeacherFitConfig)


def load_config(recipe: str | Path, *layers: Sequence[str]) -> RunConfig:
    """Read a shipped recipe (by name) or a YAML file, with overrides, as in `["train.steps=100", "seed=1"]`.

    `depthjepa recipes` lists the recipes, and `depthjepa recipes --keys` what can be set. Several layers of overrides
    lie one over the other; see `build_config`. Raises `BadInput` for all unknown keys and wrong values at once, each
    with the nearest valid one, and for keys that change nothing.
    """
    for layer in layers:
        refuse_other_than_settings(layer)
    content = read_recipe(recipe)
    own = flatten(content)
    content.setdefault("name", Path(recipe).stem)
    config = build_config(content, *layers)
    alone = config if not any(layers) else _alone(content)
    if not own.keys() >= flatten(to_mapping(alone or config)).keys():  # all keys are what a run wrote, not asked for
        refuse_idle(_telling(own), config, *([] if alone is None else [alone]))
    return config


def refuse_other_than_settings(settings: object) -> None:
    """Raise `BadInput` for what is no list or tuple of texts; one text by itself would be read letter by letter."""
    if not isinstance(settings, (list, tuple)) or not all(isinstance(text, str) for text in settings):
        example = settings if isinstance(settings, str) else "evaluation.which=context"
        raise BadInput(f"settings are a list of KEY=VALUE, as [{example!r}], and not {settings!r}")


def refuse_repeated(settings: Sequence[str]) -> None:
    """Raise `BadInput` for keys that are given more than once in one list of KEY=VALUE."""
    for fault in given_twice(settings):
        raise BadInput(fault)


@functools.cache
def _defaults() -> dict[str, list[Any]]:
    """The default of every key; several where kinds of guidance differ."""
    found: dict[str, list[Any]] = {}
    for kind in KINDS.values():
        for key, value in flatten(to_mapping(RunConfig(guidance=kind()))).items():
            found.setdefault(key, []).append(value)
    return found


def _telling(asked: Mapping[str, Any]) -> list[str]:
    """The keys that ask for something else than their default."""
    return [key for key, value in asked.items() if value not in _defaults().get(key, [])]


def _alone(content: Mapping[str, Any]) -> RunConfig | None:
    """A recipe without what is laid over it; None where it says too little by itself."""
    try:
        return _build(RunConfig, content, ())
    except BadInput:
        return None


def build_config(content: Mapping[str, Any], *layers: Sequence[str]) -> RunConfig:
    """Check a nested mapping with overrides and turn it into a `RunConfig`; raises `BadInput` with all faults.

    Each of the `layers` of `key=value` lies over the one before: where it names another kind of guidance, keys of the
    kind before go with it, while a key that does not fit the kind of its own layer is refused. So is a key of the last
    layer that changes nothing and is not at its default. (What `content` has may belong to what a layer switches off.)
    """
    config = _build(RunConfig, content, layers)
    refuse_idle(given(layers[-1] if layers else (), config), config)
    return config


def given_twice(settings: Sequence[str]) -> list[str]:
    """What to say of keys that stand in KEY=VALUE more than once: nobody knows which one is meant."""
    names = [text.partition("=")[0] for text in settings]
    repeated = [key for key in dict.fromkeys(names) if names.count(key) > 1]
    return [f"{', '.join(repeated)}: given more than once, and only one of them can hold"] if repeated else []


def given(layer: Sequence[str], config: RunConfig) -> list[str]:
    """The keys for which KEY=VALUE asks for something else than their default, in the configuration it led to."""
    names, values = [text.partition("=")[0] for text in layer], flatten(to_mapping(config))
    return _telling({name: values[name] for name in names if name in values})


def build_fit(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> TeacherFitConfig:
    """The same for a `TeacherFitConfig`."""
    return _build(TeacherFitConfig, content, (overrides,))


def read_resolved(content: Mapping[str, Any]) -> tuple[RunConfig, tuple[str, ...]]:
    """Read the configuration that a run has written, of this version or of an earlier one.

    With it what it asks for that this version no longer has, as KEY=VALUE: such a run cannot go on.
    """
    now, lost = current(content)
    return _build(RunConfig, now, ()), tuple(lost)


def _build(kind: type[Configuration], content: Mapping[str, Any], layers: Sequence[Sequence[str]]) -> Configuration:
    merged, lost = current(_copy(content))
    declared = types(kind)
    known = list(declared)
    faults = [f"{each} is no setting any more: {why}" for each, why in lost.items()]
    for layer in layers:
        _drop_other_guidance(merged, layer)
        _drop_other_size(merged, layer)
        faults += _idle_size(layer)
        faults += [fault for text in layer if (fault := _override(merged, text, declared))]
        if not faults and kind is RunConfig:
            _replace_length(merged, [text.partition("=")[0] for text in layer])
    asked = flatten(merged)
    faults += [_unknown(key, known) for key in asked if key not in known]
    faults += [_dotted(key) for key in merged if "." in str(key) and key in known]
    faults += _foreign_guidance(merged)
    if not faults:
        try:
            config = TypeAdapter(kind).validate_python(merged)
        except ValidationError as error:
            faults = [_explain(fault, known) for fault in error.errors()]
        else:
            faults = _taken_for_numbers(asked, flatten(to_mapping(config)))
            if not faults:
                return config
    raise BadInput("configuration: " + "; ".join(dict.fromkeys(faults)))


def _unknown(key: str, known: Sequence[str]) -> str:
    if why := why_removed(key):
        return f"{key} is no key any more: {why}"
    if below := next((each for each in known if each.startswith(f"{key}.")), None):
        return f"{key} is a section, not a key: give its keys, such as {below}"
    same = [each for each in known if each.endswith(f".{key}")]
    hint = f" (did you mean {' or '.join(map(repr, same))}?)" if same else nearest(key, known)
    return f"unknown key {key!r}{hint}"


def _dotted(key: str) -> str:
    section, _, name = key.partition(".")
    return f"{key}: dots are for KEY=VALUE, in a file write `{section}: {{{name}: …}}`"


def _taken_for_numbers(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Keys that ask for true or false, of which the validator made a number."""
    return [
        f"{key}={str(value).lower()}: should be a number"
        for key, value in asked.items()
        if isinstance(value, bool) and not isinstance(found.get(key), bool)
    ]


def _replace_length(content: dict[str, Any], overridden: list[str]) -> None:
    """A length given as an override replaces the recipe's, in whichever unit that is."""
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"train.{given}" in overridden and f"train.{other}" not in overridden:
            content["train"][other] = None


def _drop_other_size(content: dict[str, Any], layer: Sequence[str]) -> None:
    """Where a layer names a size, take away the widths and depths below it, which would stand in its place."""
    below = content.get("model")
    if any(text.startswith("model.size=") for text in layer) and isinstance(below, dict):
        content["model"] = {key: value for key, value in below.items() if key not in SHAPE}


def _idle_size(layer: Sequence[str]) -> list[str]:
    """What to say of a layer that names a size and all that a size stands for."""
    given = {key: value for key, _, value in (text.partition("=") for text in layer) if value not in ("", "null")}
    if "model.size" in given and {"model.width", "model.depth"} <= given.keys():
        return ["model.size has no effect here: it takes model.width or model.depth to be null"]
    return []


def _drop_other_guidance(content: dict[str, Any], layer: Sequence[str]) -> None:
    """Where a layer names a kind of guidance, take away what lies below it and is for other kinds.

    Keys that several kinds have stay, unless they mean something else there: `head` and `read` have other choices.
    """
    named = [text.partition("=")[2] for text in layer if text.startswith("guidance.kind=")]
    below = content.get("guidance")
    if named and named[-1] in KINDS and isinstance(below, dict):
        kinds = (KINDS.get(str(kind), NoGuidance) for kind in (below.get("kind"), named[-1]))
        before, own = (get_type_hints(kind, include_extras=True) for kind in kinds)  # with what checks their values
        content["guidance"] = {
            key: value for key, value in below.items() if key in own and own[key] == before.get(key, own[key])
        }


def _foreign_guidance(content: Mapping[str, Any]) -> list[str]:
    """Keys of guidance that are for another kind than is asked for, in words."""
    asked = content.get("guidance")
    if not isinstance(asked, Mapping):
        return []
    kind = asked.get("kind", "none")
    if not isinstance(kind, str) or kind not in KINDS:
        *others, last = map(repr, KINDS)
        return [f"guidance.kind={kind!r}: should be {', '.join(others)} or {last}{nearest(str(kind), KINDS)}"]
    faults = []
    for key in asked:
        others = [other for other, each in KINDS.items() if key in _names(each)]
        if others and kind not in others:
            wanted = " or ".join(f"guidance.kind={other}" for other in others)
            faults.append(f"guidance.{key} is for {wanted}, not for guidance.kind={kind}")
    return faults


def _names(kind: Any) -> set[str]:
    return {each.name for each in dataclasses.fields(kind)}


def _copy(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in content.items()}


def _override(content: dict[str, Any], text: str, declared: Mapping[str, Sequence[Any]]) -> str | None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return f"{text!r} is not of the form key=value"
    choices = declared.get(key, ())
    if not value:
        return f"{key}= is empty: give a value{' (null stands for none)' if NoneType in choices else ''}"
    *parts, last = key.split(".")
    for part in parts:
        inner = content.setdefault(part, {})
        if not isinstance(inner, dict):
            return f"unknown key {key!r}: {part!r} holds no keys"
        content = inner
    try:
        content[last] = value_of(value, choices)
    except BadInput as fault:
        return f"{key}={value}: {fault}"
    return None


def _explain(fault: Any, known: Sequence[str]) -> str:
    parts = [str(part) for part in fault["loc"]]
    if parts[0] == "guidance" and len(parts) > 1 and parts[1] in KINDS:
        del parts[1]  # the validator names the class of several that it tried
    # What follows a key are the validator's words for the alternatives of its type, and places in a list.
    key = next((begin for end in range(len(parts)) if (begin := ".".join(parts[: end + 1])) in known), ".".join(parts))
    given, text = fault["input"], fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = fault.get("ctx", {}).get("expected", "")
    text = re.sub(", (unable to|got a number).*", "", text).replace("valid tuple", "list")
    for_text = {"string_type": (int, float, datetime.date), "literal_error": (bool, datetime.date)}
    if isinstance(given, for_text.get(fault["type"], ())):
        text += f" ({IN_QUOTES})"
    text = "too few values" if fault["type"] == "missing" else text
    if isinstance(given, Mapping):  # keys that do not fit together: the fault names them
        return f"{key}: {text}"
    close = difflib.get_close_matches(str(given), re.findall("'([^']+)'", expected), n=1)
    hint = fault.get("ctx", {}).get("hint") or (f" (did you mean {close[0]!r}?)" if close else "")
    return f"{key}={given!r}: should be {text}{hint}" if "Input" in fault["msg"] else f"{key}={given!r}: {text}{hint}"
