"""The order of an epoch, as pure functions of (source, seed, epoch), and mixtures of sources."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np
from jaxtyping import Float64, Int64

from depthjepa import runtime
from depthjepa.data.samples import Sample, Segmented, Source, Windowed, segment_classes
from depthjepa.faults import BadInput


def evenly(count: int, total: int) -> Int64[np.ndarray, " count"]:
    """Numbers of `count` samples (at most all) spread evenly over `total`, so that sorted classes are all covered."""
    count = min(count, total)
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * max(1, count))


class Mixture:
    """Several sources one after the other; with `weights`, training draws from each by its weight.

    An epoch has as many samples as the sources together. Without weights it is every sample once. With
    weights each source's share of it is its weight, drawn without replacement within each pass over the
    source; where the share is larger than the source, further passes follow. Fixed views (evaluation) always
    read every sample once. Classes and labels are kept only if all sources have the same classes (those of label maps
    alike), depth only if all sources have depth.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None) -> None:
        self.name = ",".join(source.name for source in sources)
        self.classes = sources[0].classes if len({source.classes for source in sources}) == 1 else ()
        self.segment_classes = segment_classes(sources[0]) if len(set(map(segment_classes, sources))) == 1 else ()
        self.has_depth = all(source.has_depth for source in sources)
        self.knows_focal_length = all(source.knows_focal_length for source in sources)
        self.keeps_samples = all(source.keeps_samples for source in sources)
        self.weights = weights
        self.sources = tuple(sources)
        self._folders = told_apart([PurePath(source.name).name for source in sources])
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, index: int) -> Sample:
        """Decode sample `index` of the concatenation; raises `UnreadableImage`."""
        part, place = self.part_of(index)
        return self._as_own(self.sources[part].sample(place), index)

    def labelled_sample(self, index: int) -> Sample:
        """The same with the label map, where all sources have the same classes of label maps."""
        part, place = self.part_of(index)
        source = self.sources[part]
        assert self.segment_classes and isinstance(source, Segmented)
        return self._as_own(source.labelled_sample(place), index)

    def _as_own(self, sample: Sample, index: int) -> Sample:
        return replace(
            sample,
            name=self.name_of(index),
            depth=sample.depth if self.has_depth else None,
            label=sample.label if self.classes else -1,
        )

    def name_of(self, index: int) -> str:
        """Name of sample `index`: its source's folder (-2 behind a second one so called), then its name there."""
        part, place = self.part_of(index)
        return f"{self._folders[part]}/{self.sources[part].name_of(place)}"

    def part_of(self, index: int) -> tuple[int, int]:
        """Which source sample `index` is from, and its number there."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        return which, index - int(self._ends[which]) + len(self.sources[which])

    def weighted_order(self, weights: Sequence[float], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
        """Return one epoch of sample indices in which each source has the share of its weight."""
        shares = _apportion(len(self), weights)
        if any(moments(source, seed, epoch) is not None for source in self.sources):
            return self._weighted_in_windows(shares, seed, epoch)
        parts = []
        for which, (source, share) in enumerate(zip(self.sources, shares, strict=True)):
            first = int(self._ends[which]) - len(source)
            parts.append(first + _passes(len(source), share, seed, f"order/{which}", epoch))
        together = np.concatenate(parts)
        shuffle = runtime.permutation(len(together), seed=seed, stream="order/mixture", epoch=epoch)
        mixed: Int64[np.ndarray, " n"] = together[shuffle]
        return mixed

    def _weighted_in_windows(self, shares: Sequence[int], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
        """The same with sources that are had by pieces: each keeps its own order, and they are mixed all along."""
        indices, times = [], []
        for which, (source, share) in enumerate(zip(self.sources, shares, strict=True)):
            drawn, when = _passes_in_windows(source, share, seed, f"order/{which}", epoch)
            indices.append(int(self._ends[which]) - len(source) + drawn)
            times.append(when)
        mixed: Int64[np.ndarray, " n"] = np.concatenate(indices)[np.argsort(np.concatenate(times), kind="stable")]
        return mixed


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind one that came before: `a`, `b`, `a-2`."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        found.append(next(each for each in itertools.chain([name], numbered) if each not in found))
    return found


def _passes(length: int, count: int, seed: int, stream: str, epoch: int) -> Int64[np.ndarray, " count"]:
    """Draw `count` of `range(length)`: each pass without replacement, as many passes as it takes."""
    turns = [
        runtime.permutation(length, seed=seed, stream=f"{stream}/{turn}", epoch=epoch)
        for turn in range(-(-count // length))
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *turns])[:count]


def _passes_in_windows(
    source: Source, count: int, seed: int, stream: str, epoch: int
) -> tuple[Int64[np.ndarray, " count"], Float64[np.ndarray, " count"]]:
    """Draw `count` samples as `_passes` does, each with its moment from 0 to 1 (see `moments`)."""
    indices, times = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for turn in range(-(-count // len(source))):
        when = moments(source, seed, epoch, f"{stream}/{turn}")
        when = _random(len(source), seed, epoch, f"{stream}/{turn}/moment") if when is None else when
        indices.append(np.argsort(when, kind="stable"))
        times.append(turn + when[indices[-1]])
    return np.concatenate(indices)[:count], np.concatenate(times)[:count] * len(source) / max(1, count)


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` by weight into whole numbers: the largest remainders are rounded up."""
    exact = total * np.array(weights) / sum(weights)
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return [int(share) for share in shares]


def weighted_roots(roots: str) -> list[tuple[str, float | None]]:
    """Read `PATH`s and `PATH*WEIGHT`s that are separated by commas."""
    return [_weighted_root(part.strip()) for part in roots.split(",")]


def _weighted_root(part: str) -> tuple[str, float | None]:
    root, star, tail = part.rpartition("*")
    if not star:
        root, weight = part, None
    else:
        try:
            weight = float(tail)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise BadInput(f"data.root: {part!r} must be PATH*WEIGHT with a weight above 0, as in photos*2")
    if not root:
        raise BadInput("data.root names an empty path: give scenes, a folder, or several separated by commas")
    return root, weight


def epoch_order(source: Source, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Return the sample indices of an epoch in the order of training."""
    if isinstance(source, Mixture) and source.weights is not None:
        return source.weighted_order(source.weights, seed, epoch)
    times = moments(source, seed, epoch)
    if times is not None:
        return np.argsort(times, kind="stable")
    return runtime.permutation(len(source), seed=seed, stream="order", epoch=epoch).astype(np.int64)


def moments(source: Source, seed: int, epoch: int, stream: str = "order") -> Float64[np.ndarray, " n"] | None:
    """When in an epoch, from 0 to 1, each sample is drawn; None where that is a plain permutation.

    Pieces of shards that lie elsewhere come in a random order, and the samples of each at random moments of the time in
    which `window` pieces come: so about as many are in use at any time, and one is fetched after the other. What is
    mixed with such a source and is at hand comes at any moment.
    """
    if isinstance(source, Mixture):
        parts = [moments(each, seed, epoch, f"{stream}/{number}") for number, each in enumerate(source.sources)]
        if all(part is None for part in parts):
            return None
        return np.concatenate(
            [
                _random(len(each), seed, epoch, f"{stream}/{number}/moment") if part is None else part
                for number, (each, part) in enumerate(zip(source.sources, parts, strict=True))
            ]
        )
    pieces = source.pieces() if isinstance(source, Windowed) else None
    if pieces is None or not isinstance(source, Windowed):
        return None
    count = int(pieces.max()) + 1
    window = min(source.window, count)
    turn = runtime.permutation(count, seed=seed, stream=f"{stream}/pieces", epoch=epoch)
    within = _random(len(source), seed, epoch, f"{stream}/moment")
    times: Float64[np.ndarray, " n"] = (turn[pieces] + window * within) / (count - 1 + window)
    return times


def _random(length: int, seed: int, epoch: int, stream: str) -> Float64[np.ndarray, " n"]:
    return (runtime.permutation(length, seed=seed, stream=stream, epoch=epoch) + 0.5) / length


def draw_keys(order: Int64[np.ndarray, " n"], length: int, count: int) -> Int64[np.ndarray, " count"]:
    """Wrap an epoch's order round to `count` draws and give each a number of its own.

    The key of a draw is its sample index + `length` x how often the index came before in the epoch. Crops and
    masks are drawn by key, so an image that comes twice is seen differently, and the draws stay pure
    functions.
    """
    wrapped = np.resize(order, count)
    by_index = np.argsort(wrapped, kind="stable")
    values = wrapped[by_index]
    first = np.searchsorted(values, values, side="left")
    keys = np.empty_like(wrapped)
    keys[by_index] = values + length * (np.arange(count) - first)
    return keys


def steps_per_epoch(length: int, batch_size: int) -> int:
    """Return the whole batches of an epoch (the rest is dropped), or 1 where there is none."""
    return max(1, length // batch_size)


def wrap_note(length: int, batch_size: int) -> str | None:
    """Return a note for the user when the sampler has to wrap round to fill a batch."""
    if length >= batch_size:
        return None
    return f"{length} images are fewer than a batch of {batch_size}: the sampler wraps round, one step an epoch"
