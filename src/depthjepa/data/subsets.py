"""A part of labelled images: the classes that `data.classes` takes, and the images that these leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from depthjepa.faults import BadInput, nearest

SHOWN = 5  # classes that a message names


def chosen_classes(there: Sequence[str], classes: int | tuple[str, ...] | None, where: object) -> tuple[str, ...]:
    """The first N classes of those that are there, the named ones in the order given, or all for None.

    Raises `BadInput` for more than there are and for a name that none has; `where` is where they are, for the message.
    """
    if classes is None:
        return tuple(there)
    if isinstance(classes, int):
        if classes > len(there):
            raise BadInput(f"data.classes={classes}, but there are {len(there)} classes in {where}")
        return tuple(there[:classes])
    for word in classes:
        if word not in there:
            raise BadInput(
                f"data.classes: no class {word!r} in {where}{nearest(word, there)}; "
                f"there are {len(there)}: {', '.join(there[:SHOWN])}{', ...' if len(there) > SHOWN else ''}"
            )
    return classes


def chosen_images(
    labels: Int64[np.ndarray, " images"], chosen: Sequence[int], at_most: int | None
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " kept"]]:
    """Numbers of the images of the chosen labels, in their order, and their labels, which become 0, 1, ....

    Of each label at most the first `at_most` images; None: all.
    """
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:at_most] for label in chosen]))
    renamed = np.empty(max(*chosen, int(labels.max())) + 1, dtype=np.int64)
    renamed[list(chosen)] = np.arange(len(chosen))
    return kept, renamed[labels[kept]]
