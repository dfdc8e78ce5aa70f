"""One pass of each encoder over the data for all tasks that read its pooled features or tokens.

Encoding is what costs. The tokens of one encoder are dropped before the next one's turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from depthjepa.data.images import Split
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import RANDOM, one_pass
from depthjepa.evaluation.probes.task import Data, Measured, Probe, Seen, SharedTask
from depthjepa.progress import task as at_work

SPLITS: tuple[Split, ...] = ("train", "val")


def shared_tables(data: Data, encoders: Mapping[str, Encode], tasks: Sequence[SharedTask]) -> dict[str, Probe]:
    """One table for each task, by its name: a row for each encoder after those of guesses.

    Arrays that the random encoder gave have names that begin with `random_`.
    """
    rows: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    arrays: dict[str, dict[str, np.ndarray]] = {task.name: {} for task in tasks}
    for name, encode in encoders.items():
        with at_work(name):
            measured = _measured(data, encode, tasks)
        for task, found in zip(tasks, measured, strict=True):
            if not rows[task.name]:
                rows[task.name] += [{"name": guess, **figures} for guess, figures in found.guesses.items()]
            rows[task.name].append({"name": name, **found.figures})
            prefix = "random_" if name == RANDOM else ""
            arrays[task.name] |= {
                key if key == "images" else f"{prefix}{key}": value for key, value in found.arrays.items()
            }
    results = {}
    for task in tasks:
        own, views = rows[task.name], {split: data.of(split) for split in task.splits}
        content = task.table(data.of(task.splits[0]).source, task.protocol(data.config, views, own), own)
        verdict = {} if task.verdict is None else {"verdict": task.verdict(own)}
        results[task.name] = Probe(content | verdict, arrays[task.name])
    return results


def _measured(data: Data, encode: Encode, tasks: Sequence[SharedTask]) -> list[Measured]:
    """What one encoder gives for each task; its features are gone afterwards."""
    views = {split: data.of(split) for split in SPLITS if any(split in task.splits for task in tasks)}
    images = sum(map(len, views.values())) if any(task.tokens for task in tasks) else 0
    seen = {split: Seen(each, one_pass(encode, each, images)) for split, each in views.items()}
    return [task.measure(data.config, seen) for task in tasks]
