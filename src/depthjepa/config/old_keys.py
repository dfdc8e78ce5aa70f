"""Keys that earlier versions had: what became of each, so that their runs still load.

A key that is renamed or removed gets a row here. A file that has a removed key at the value that it had by default asks
for nothing that is lost. At another value it asks for another run than this version can make: its weights can still be
probed, embedded and converted, but the run cannot go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from depthjepa.guidance.config import KINDS


@dataclass(frozen=True, slots=True)
class Removed:
    """A key, or one value of it, that is gone."""

    key: str
    default: Any  # what the key was by default; where only `value` is gone, what stands in its place
    why: str
    value: Any = None  # the one value that is gone; None: the whole key


REMOVED = (
    Removed("guidance.norm", "none", "no recipe or study of ours used a norm before the head"),
    Removed("guidance.bins", 256, "no recipe or study of ours used classes of depth; take guidance.target=log"),
    Removed(
        "guidance.target", "log", "no recipe or study of ours used classes of depth; take guidance.target=log", "bins"
    ),
    Removed("loss.target_norm", "layer", "no study of ours found that standardising over the batch helps"),
    Removed("evaluation.gate_head_width", 128, "the gates' heads are 128 wide"),
)

# All keys of guidance before each kind had keys of its own: a file that has them all was written by a run of then.
_TOGETHER = frozenset({"norm", "bins", "teacher", "read", "scope", "cache", "zoom_aware"})
# A run's own file has all keys of its kind: with these and no `read`, feature guidance knew the paper's reading alone.
_FEATURE = frozenset({"teacher", "fill", "control", "detached", "cache"})


def current(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A nested mapping in today's keys, and what of it is lost: KEY=VALUE of removed keys at other than their default.

    With each of those why it was removed.
    Of a resolved configuration from before each kind of guidance had its own keys, those of the other kinds are
    dropped; feature guidance then read predicted tokens, whatever `guidance.read` said of pixel guidance, and did where
    it had no such key.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    guidance = found.get("guidance")
    if isinstance(guidance, dict) and guidance.keys() >= _TOGETHER:
        kind = guidance.get("kind", "none")
        if kind == "feature":
            guidance["read"] = "predicted"
        own = {each.name for each in fields(KINDS.get(kind, KINDS["none"]))}
        gone = {row.key.partition(".")[2] for row in REMOVED} if kind == "pixel" else set()
        kept = {key: value for key, value in guidance.items() if key in own | gone}
        found["guidance"] = {key: value for key, value in kept.items() if (key, value) != ("head", None)}
    elif isinstance(guidance, dict) and guidance.get("kind") == "feature" and guidance.keys() >= _FEATURE:
        guidance.setdefault("read", "predicted")
    lost: dict[str, str] = {}
    for row in REMOVED:
        part, _, key = row.key.partition(".")
        inner = found.get(part)
        if not isinstance(inner, dict) or key not in inner:
            continue
        if row.value is None:
            if (value := inner.pop(key)) != row.default:
                lost[f"{row.key}={value}"] = row.why
        elif inner[key] == row.value:
            inner[key] = row.default
            lost[f"{row.key}={row.value}"] = row.why
    return found, lost


def why_removed(key: str) -> str | None:
    """What to say of a key that is asked for and gone; None for one that never was."""
    return next((row.why for row in REMOVED if row.key == key and row.value is None), None)
