"""What comes in kinds: a table of rows, each a name, one line about it, and the module that knows the rest.

A row names its module instead of importing it, so that a table can be read for help and messages without loading what
its members need, and a member's library is loaded only when that member is asked for. A new kind is one new file and
one row; the command line, the configuration's choices and the messages read the table.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from depthjepa.faults import BadInput


@dataclass(frozen=True, slots=True)
class Row:
    """One kind: what it is called, what it is in one line, and the module (dotted, below the package) that has it."""

    name: str
    about: str
    module: str
    also: tuple[str, ...] = ()  # what people call it beside its name, for messages


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one sort. The module of each has its member under the name `member`."""

    what: str  # for messages, as in "there is no teacher 'dpeth'"
    member: str
    rows: tuple[Row, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the rows."""
        return tuple(row.name for row in self.rows)

    def row(self, name: str) -> Row:
        """The row of a name; raises `BadInput` with the nearest one."""
        for row in self.rows:
            if row.name == name:
                return row
        raise BadInput(f"there is no {self.what} {name!r}{self.meant(name)}: choose from {', '.join(self.names)}")

    def load(self, name: str) -> Any:
        """The member of a name, importing its module; raises `BadInput` for a name that no row has."""
        return getattr(importlib.import_module(f"depthjepa.{self.row(name).module}"), self.member)

    def check(self, name: str) -> str:
        """The name itself, for a configuration's key; refuses others as a `Literal` of all names would."""
        return check_choice(name, self.names, self.meant(name))

    def meant(self, name: str) -> str:
        """` (did you mean 'X'?)` for a name that no row has, by the rows' names and what people call them."""
        called = {word: row.name for row in self.rows for word in (*row.also, row.name)}
        close = difflib.get_close_matches(name, called, n=1, cutoff=0.6)
        return f" (did you mean {called[close[0]]!r}?)" if close else ""

    def listed(self) -> str:
        """All rows for a help text: `name: about; name: about`."""
        return "; ".join(f"{row.name}: {row.about}" for row in self.rows)


def check_choice(name: str, choices: Sequence[str], hint: str = "") -> str:
    """A choice itself, for a configuration's key; refuses others as a `Literal` of all choices would.

    `hint` is what the message ends in; empty: the nearest choice, where one is near.
    """
    if name not in choices:
        # pydantic's own fault, so that the key's message lists the choices and finds the nearest one.
        from pydantic_core import PydanticCustomError

        expected = " or ".join(", ".join(map(repr, part)) for part in (choices[:-1], choices[-1:]) if part)
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected, "hint": hint})
    return name
