"""How a section of settings is declared: a frozen class whose fields are keys, each with its meaning below it.

    @configuration
    class Section:
        steps: PositiveInt = 10
        '''Length of it [steps].'''

Unknown keys, and numbers that are not finite, are refused. `depthjepa recipes --keys` prints the meanings.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

Section = TypeVar("Section")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def configuration(section: type[Section]) -> type[Section]:
    """Make a class a section of settings: strict, frozen, and with its fields' docstrings as their meanings."""
    return cast("type[Section]", dataclass(frozen=True, slots=True, config=STRICT)(section))
