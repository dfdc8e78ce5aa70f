"""What is written after KEY= becomes what the key's declared type asks for.

YAML alone would make numbers, dates, true or false of names (`010`, `2011_09_26`, `yes`), and a comment of what follows
a `#`: a text stays what was written, and so does each text of a list.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml

from depthjepa.config.recipe_files import OddNumber, parse
from depthjepa.faults import BadInput

NULL = ("null", "~")
QUOTED = r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\""""
ITEM = re.compile(rf"\s*(?:({QUOTED})\s*(?=,|$)|([^,]*))(?:,|$)")
WHOLE = r"-?(0|[1-9][0-9]*)"


def value_of(text: str, choices: Sequence[Any]) -> Any:
    """The value that KEY=TEXT gives a key of these types (see `run_config.types`).

    A list of texts is written `[a,b]`, or as one text; where the key also takes a whole number, digits alone are that
    (`[3]` is the list of the text 3). Quotes of YAML around a text are taken away. What is no text is YAML, and left as
    it is where it is none: the type then says what is wrong. Raises `BadInput` for a number that YAML reads as another.
    """
    if NoneType in choices and text in NULL:
        return None
    if any(map(_is_text, choices)):
        if int in choices and re.fullmatch(WHOLE, text):
            return int(text)
        if not (text.startswith("[") and any(get_origin(each) is tuple for each in choices)):
            return _unquoted(text)
    if any(get_origin(each) is tuple and _is_text(get_args(each)[0]) for each in choices):
        if int in choices and re.fullmatch(WHOLE, text):
            return int(text)
        return _items(text[1:-1]) if text.startswith("[") and text.endswith("]") else _unquoted(text)
    try:
        return parse(text)
    except OddNumber as fault:
        raise BadInput(str(fault.problem)) from fault
    except (yaml.YAMLError, ValueError):  # ValueError: a date that there is not
        return text


def _is_text(choice: Any) -> bool:
    return choice is str or (get_origin(choice) is Literal and all(isinstance(each, str) for each in get_args(choice)))


def _unquoted(text: str) -> str:
    if re.fullmatch(QUOTED, text):
        with contextlib.suppress(yaml.YAMLError):
            return str(yaml.safe_load(text))
    return text


def _items(text: str) -> list[str]:
    """Texts between commas, each as it is written; a comma may stand in quotes, and one at the end adds none."""
    found = ITEM.findall(text.rstrip().removesuffix(","))
    return [_unquoted(quoted or plain.strip()) for quoted, plain in found if quoted or plain.strip()]
