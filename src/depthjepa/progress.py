"""How far a run is, on the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(
    name: str, done: int, steps: int, *, shown: bool
) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Show steps, loss, images a second and time left; on a terminal a bar, else nothing.

    Gives the function that takes the steps done so far and the figures of the last one.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown, refresh_per_second=4) as bar:
        task = bar.add_task(name, total=steps, completed=done, figures="")

        def advance(step: int, figures: Mapping[str, Any]) -> None:
            speed = figures.get("images_per_second")
            bar.update(task, completed=step)
            if speed is not None:  # of a step that is logged: others leave their loss on the device
                bar.update(task, figures=f"loss {float(figures['loss']):.3f}  {speed:.0f} images/s")

        yield advance
