"""How a section of settings is declared: a frozen class whose fields are keys, each with its meaning below it.

    @configuration
    class Section:
        steps: PositiveInt = 10
        '''Length of it [steps].'''

Unknown keys, and numbers that are not finite, are refused. `depthjepa recipes --keys` prints the meanings. Small JSON
files beside data and weights (`read_json`) are declared and refused in the same way.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from depthjepa.faults import BadInput, nearest

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Section = TypeVar("Section")
Kind = TypeVar("Kind")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def configuration(section: type[Section]) -> type[Section]:
    """Make a class a section of settings: strict, frozen, and with its fields' docstrings as their meanings."""
    return cast("type[Section]", dataclass(frozen=True, slots=True, config=STRICT)(section))


def are_sides(value: object) -> bool:
    """Whether a value that was given is a side, or height and width: whole numbers of pixels."""
    sides = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    return all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)


def read_json(file: Path, kind: type[Kind], form: str = "") -> Kind:
    """What a JSON file says, as a declared class; raises what `parse_json` raises."""
    return parse_json(file.read_bytes(), str(file), kind, form)


def parse_json(content: bytes, name: str, kind: type[Kind], form: str = "") -> Kind:
    """What the content of a JSON file says, as a declared class; `form` says in a message what it should look like.

    Raises `BadInput` for content that is not JSON, unknown keys and values of another type, with `name` and key.
    """
    ending = f"; {form}" if form else ""
    try:
        text = content.decode(json.detect_encoding(content))  # of editors that begin a file with a mark, without it
        return TypeAdapter(kind).validate_json(text)
    except UnicodeDecodeError as fault:
        raise BadInput(f"{name}: it is not text") from fault
    except ValidationError as error:
        schema = TypeAdapter(kind).json_schema()
        parts = [schema, *schema.get("$defs", {}).values()]
        known = [each for part in parts for each in part.get("properties", ())]
        faults = "; ".join(_explain(fault, known) for fault in error.errors())
        raise BadInput(f"{name}: {faults}{ending}") from error


def _explain(fault: Mapping[str, Any], known: list[str]) -> str:
    key, text = ".".join(str(part) for part in fault["loc"]), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        return f"it is not JSON ({text.removeprefix('Invalid JSON: ')})"
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}{nearest(key.rpartition('.')[2], known)}"
    if fault["type"] == "missing":
        return f"{key!r} is missing"
    text = text.removeprefix("Input ").removeprefix("should ")
    return f"{key}={fault['input']!r}: should {text}" if key else f"the file should hold {{...}}: {text}"
