"""One pass of each encoder over the data for all tasks that read its pooled features or tokens.

Encoding is what costs. The tokens of one encoder are dropped before the next one's turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthjepa.data.images import Split
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import RANDOM, is_random, one_pass
from depthjepa.evaluation.probes.task import Data, Measured, Probe, Seen, SharedTask
from depthjepa.progress import task as at_work
from depthjepa.runs import Arrays

SPLITS: tuple[Split, ...] = ("train", "val")


def shared_tables(data: Data, encoders: Mapping[str, Encode], tasks: Sequence[SharedTask]) -> dict[str, Probe]:
    """One table for each task, by its name: a row for each encoder after those of guesses.

    Arrays that an encoder gave at its initial weights stand beside its own, under names that begin with `random_`.
    """
    rows: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    arrays: dict[str, dict[str, Arrays]] = {task.name: {} for task in tasks}
    for name, encode in encoders.items():
        with at_work(name):
            measured = _measured(data, encode, tasks)
        for task, found in zip(tasks, measured, strict=True):
            if not rows[task.name]:
                rows[task.name] += [{"name": guess, **figures} for guess, figures in found.guesses.items()]
            rows[task.name].append({"name": name, **found.figures})
            arrays[task.name][name] = found.arrays
    results = {}
    for task in tasks:
        own, views = rows[task.name], {split: data.of(split) for split in task.splits}
        content = task.table(data.of(task.splits[0]).source, task.protocol(data.config, views, own), own)
        verdict = {} if task.verdict is None else {"verdict": task.verdict(own)}
        kept = _with_random(arrays[task.name])
        # Of several encoders the one that the data's configuration names, else the last, is whose probe this is.
        whose = data.config.name if data.config.name in kept else next(reversed(kept), "")
        beside = {name: each for name, each in kept.items() if name != whose}
        results[task.name] = Probe(content | verdict, kept.get(whose, {}), beside)
    return results


def _with_random(arrays: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """Arrays of each encoder, with those of its initial weights."""
    found = {}
    for name, own in arrays.items():
        if is_random(name):
            continue
        random = arrays.get(f"{RANDOM}, {name}", arrays.get(RANDOM, {}))
        found[name] = {f"random_{key}": value for key, value in random.items() if key != "images"} | own
    return found


def _measured(data: Data, encode: Encode, tasks: Sequence[SharedTask]) -> list[Measured]:
    """What one encoder gives for each task; its features are gone afterwards."""
    views = {split: data.of(split) for split in SPLITS if any(split in task.splits for task in tasks)}
    images = sum(map(len, views.values())) if any(task.tokens for task in tasks) else 0
    seen = {split: Seen(each, one_pass(encode, each, images)) for split, each in views.items()}
    return [task.measure(data.config, seen) for task in tasks]
