"""All keys of the configuration in words: their types and defaults as people write them, and what they mean.

They are read from the JSON schema of the classes that declare them, where a field's docstring is its meaning; with
them stands what shipped recipes set otherwise. `depthjepa recipes --keys` and docs/keys.md print them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from depthjepa.config.recipe_values import Setting, settings_of_recipes
from depthjepa.config.run_config import FIT_DEFAULTS, RunConfig, TeacherFitConfig, to_mapping
from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import flatten

NOUNS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
SHORT = 32  # letters of a recipe's value that a list of all keys has room for


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its dotted name, its type in words, its default as it is written after KEY=, and its meaning."""

    name: str
    type: str
    default: str  # empty: it has none and has to be given
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """Keys that begin alike, with what they are about; `needs` is the setting without which they are refused.

    `recipes` are the settings of shipped recipes that are not the default, by key.
    """

    name: str  # empty: keys without a section
    about: str
    keys: tuple[Key, ...]
    needs: str = ""
    recipes: Mapping[str, list[Setting]] = dataclasses.field(default_factory=dict)

    def set_by_recipes(self, most: int | None = None) -> list[tuple[str, list[tuple[str, str]]]]:
        """Key by key, recipes and the value that they set, as it is written, cut off after `most` letters."""
        return [
            (key.name, [(each.recipes, _cut(written(each.value), most)) for each in self.recipes[key.name]])
            for key in self.keys
            if key.name in self.recipes
        ]


@dataclass(frozen=True, slots=True)
class Listing:
    """The sections of one configuration."""

    title: str
    sections: tuple[Section, ...]


def listings(only: str | None = None, more: Sequence[Listing] = ()) -> list[Listing]:
    """The keys of a run, those of `fit-teacher` that differ from them, and `more`; or one section or key of all.

    Raises `BadInput` for a section or key that is not there, with the nearest one.
    """
    run = [
        replace(section, recipes=settings_of_recipes(section.needs.partition("=")[2]))
        for section in sections_of(RunConfig)
    ]
    known = {key for section in run for key in section.keys}
    fit = [_without(section, known) for section in sections_of(TeacherFitConfig, FIT_DEFAULTS)]
    found = [
        Listing("Keys of a run: `depthjepa train` and all that reads runs", tuple(run)),
        Listing("Keys of `depthjepa fit-teacher`", tuple(section for section in fit if section.keys)),
        *more,
    ]
    return found if only is None else _only(found, only)


def _without(section: Section, known: set[Key]) -> Section:
    own = tuple(key for key in section.keys if key not in known)
    return section if own == section.keys else replace(section, keys=own, about="As of a run, but for these defaults.")


def _only(found: list[Listing], word: str) -> list[Listing]:
    narrowed = [replace(listing, sections=_narrowed(listing.sections, word)) for listing in found]
    if not any(listing.sections for listing in narrowed):
        names = dict.fromkeys(section.name for listing in found for section in listing.sections if section.name)
        keys = [key.name for listing in found for section in listing.sections for key in section.keys]
        raise BadInput(
            f"there is no section or key {word!r}{nearest(word, [*names, *keys])}: sections are {', '.join(names)}"
        )
    return [listing for listing in narrowed if listing.sections]


def _narrowed(sections: tuple[Section, ...], word: str) -> tuple[Section, ...]:
    matching = [
        section
        if section.name == word
        else replace(section, keys=tuple(key for key in section.keys if key.name == word))
        for section in sections
    ]
    return tuple(section for section in matching if section.keys)


def sections_of(kind: type[RunConfig | TeacherFitConfig], changed: Mapping[str, Any] | None = None) -> list[Section]:
    """The sections of a configuration class in its own order; `changed` are defaults that a command puts over it."""
    schema = TypeAdapter(kind).json_schema()
    classes: dict[str, Any] = {f"#/$defs/{name}": content for name, content in schema["$defs"].items()}
    defaults = flatten(to_mapping(kind())) | flatten(changed or {})
    plain = {name: field for name, field in schema["properties"].items() if not {"$ref", "oneOf"} & field.keys()}
    found = [Section("", first_paragraph(schema), keys_of(plain, "", defaults))]
    for name, field in schema["properties"].items():
        if "$ref" in field:
            content = classes[field["$ref"]]
            keys = keys_of(content["properties"], f"{name}.", defaults)
            found.append(Section(name, first_paragraph(content), keys))
        elif "oneOf" in field:
            kinds = [classes[each["$ref"]] for each in field["oneOf"]]
            found += _in_kinds(name, field, kinds, defaults)
    return found


def _in_kinds(name: str, field: Any, kinds: list[Any], defaults: Mapping[str, Any]) -> list[Section]:
    """A section that comes in kinds: the key that says which, then the keys of each kind."""
    tag = field["discriminator"]["propertyName"]
    values = {content["properties"][tag]["const"]: content for content in kinds}
    meaning = " ".join(f"{value}: {content['properties'][tag]['description']}" for value, content in values.items())
    which = Key(f"{name}.{tag}", words({"enum": list(values)}), written(defaults[f"{name}.{tag}"]), meaning)
    found = [Section(name, field["description"], (which,))]
    for value, content in values.items():
        own = {key: each for key, each in content["properties"].items() if key != tag}
        if own:
            keys = keys_of(own, f"{name}.", defaults)
            found.append(Section(name, first_paragraph(content), keys, needs=f"{name}.{tag}={value}"))
    return found


def keys_of(fields: Mapping[str, Any], prefix: str = "", defaults: Mapping[str, Any] | None = None) -> tuple[Key, ...]:
    """The keys that the properties of a class's schema are; `defaults` by dotted name go before the schema's."""
    known = {prefix + name: field["default"] for name, field in fields.items() if "default" in field}
    known.update(defaults or {})
    return tuple(
        Key(
            prefix + name,
            words(field),
            written(known[prefix + name]) if prefix + name in known else "",
            " ".join(field.get("description", "").split()),
        )
        for name, field in fields.items()
    )


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def first_paragraph(content: Mapping[str, Any]) -> str:
    """What the docstring of a class says first, in one line, from its schema."""
    return " ".join(content["description"].split("\n\n")[0].split())


def written(value: Any) -> str:
    """A value as it is written in a recipe or after KEY=."""
    return value if isinstance(value, str) and value else json.dumps(value)


def words(schema: Mapping[str, Any], *, many: bool = False) -> str:
    """A type in words from its JSON schema, such as `number > 0, or null`; in the plural for what a list holds."""
    if "anyOf" in schema:
        return ", or ".join(words(each) for each in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ("" if many else "one of ") + " | ".join(schema["enum"])
    if "prefixItems" in schema:
        (each,) = {words(item, many=True) for item in schema["prefixItems"]}
        return f"list of {len(schema['prefixItems'])} {each}"
    if "items" in schema:
        fewest = f"{schema['minItems']} or more " if "minItems" in schema else ""
        return f"list{'s' * many} of {fewest}{words(schema['items'], many=True)}"
    if "additionalProperties" in schema:
        return f"{words(schema['additionalProperties'], many=True)} by name"
    if "$ref" in schema:  # a class whose keys are a section of their own
        return str(schema["$ref"]).rpartition("/")[2].lower() + "s" * many
    bounds = {sign: schema[key] for key, sign in SIGNS.items() if key in schema}
    if schema["type"] == "integer" and ">" in bounds:
        bounds = {">=": bounds.pop(">") + 1, **bounds}
    noun = NOUNS[schema["type"]] + "s" * many
    limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items())
    multiple = f", a multiple of {schema['multipleOf']:g}" if "multipleOf" in schema else ""
    return f"{noun} {limits}".rstrip() + multiple
