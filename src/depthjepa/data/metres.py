"""What the depth of a data set is in metres, shown before anything learns from it, and what looks wrong about it.

A wrong unit, a missing value that counts as a distance, or disparity in the place of depth trains as smoothly as depth
does. Nothing here corrects anything: it says what was read, and which key says otherwise. Data at hand (Kinect, time of
flight, lidar; rooms and streets) keep far from every limit below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from depthjepa.data.order import Mixture, evenly
from depthjepa.data.samples import Source, UnreadableImage
from depthjepa.depth import valid
from depthjepa.faults import BadInput
from depthjepa.progress import track

PAIRS = 32  # that are looked at, of each source
PIXELS = 20_000  # of a pair, for its median and its steps

LARGEST = 2**16 - 1
SPIKE = {True: 0.001, False: 0.02}  # share of one largest value, where it is LARGEST or not; of real data below 1e-4
NEAR, FAR = 0.1, 200.0  # medians [m] that cameras have
LEFT_OUT = 0.5  # share of what is measured that a range may leave out
DISTINCT = 100  # values, from which on common steps of all of them mean something
EIGHT_BITS = 16  # the same, for the few values of 8 bits
STEPS = 0.99  # share of the values that are multiples of a step
BELOW = 1.1  # what lies lower is called farther from this ratio on
MOST = 0.5  # share of pairs in which it is, at least: of real data at most 0.11, and 0.7 to 1 in disparity
FEW_PAIRS = 8  # of which that share means little
SEEN = 0.05  # share of a third of an image that has to be measured

UNITS = "millimetres 1000, centimetres 100, metres 1, KITTI 256, TUM RGB-D 5000"

Range = tuple[float, float]


@runtime_checkable
class DepthFiles(Protocol):
    """A source whose depth is read from files in some unit."""

    name: str
    depth_scale: float  # file units per metre
    whole_numbers: bool  # in its files, or floats
    depth_range: Range | None  # of its dataset.json [m]

    def __len__(self) -> int: ...

    def measured(self, index: int) -> tuple[Float32[Tensor, "1 h w"], Float32[Tensor, "1 h w"]]:
        """Depth [m] as it stands in the file, and what counts of it."""
        ...


def describe_depth(source: Source, kept: Range | None = None, keys: str = "") -> list[str]:
    """A line on the depth of each source that is read from files, each followed by a line for what looks wrong.

    `kept` is the range of depths [m] that is learned, `keys` the keys that say so. Scenes are not described.

    Raises `BadInput` where no pixel that was looked at can be learned from, and what reading a pair raises.
    """
    parts = source.sources if isinstance(source, Mixture) else (source,)
    files = (part for part in parts if part.has_depth and isinstance(part, DepthFiles))
    return [line for part in files for line in _describe(part, kept, keys)]


def _describe(source: DepthFiles, kept: Range | None, keys: str) -> list[str]:
    seen = _look(source)
    if not seen.pairs:  # none can be read: the first batch says why
        return []
    what, units = f"depth of {source.name}", f"{source.depth_scale:g} file units a metre"
    if not seen.counting:
        raise BadInput(f"{what}: {_why_none_counts(seen, source)}")
    metres, faults = np.concatenate(seen.metres), _faults(seen, source)
    if kept is not None:
        inside = float(((metres >= kept[0]) & (metres <= kept[1])).mean())
        if not inside:
            raise BadInput(
                f"{what}: none of what was looked at is within {kept[0]:g} to {kept[1]:g} m ({keys}); it is "
                f"{_from_to(metres)} m, at {units} (data.depth_scale: {UNITS})"
            )
        if 1 - inside > LEFT_OUT:
            faults.append(f"{1 - inside:.0%} of it is not within {kept[0]:g} to {kept[1]:g} m ({keys})")
    return [
        f"{what}: {seen.nearest:.3g} to {seen.farthest:.3g} m, median {np.median(metres):.3g} m, "
        f"{seen.counting / seen.pixels:.0%} of pixels measured ({seen.pairs} of {len(source)} pairs, {units})",
        *(f"warning: {what}: {fault}" for fault in faults),
    ]


@dataclass
class _Seen:
    """What some pairs hold; numbers are of pixels."""

    pairs: int = 0
    empty: int = 0  # pairs, without a pixel that counts
    pixels: int = 0
    measured: int = 0  # not 0 in the file
    counting: int = 0  # measured, and left by the range
    nearest: float = math.inf  # [m], of what counts
    farthest: float = 0.0
    largest: int = 0  # steps (`_steps_of`), of what counts
    at_largest: int = 0
    metres: list[Float32[np.ndarray, " _"]] = field(default_factory=list)  # of some pixels that count
    units: list[Int64[np.ndarray, " _"]] = field(default_factory=list)  # of some that are measured
    below: list[float] = field(default_factory=list)  # how many times farther the lowest third is than the middle one

    def add(self, stored: Float32[Tensor, "1 h w"], judged: Float32[Tensor, "1 h w"], scale: float) -> None:
        """Count a pair: its depth [m] as it stands in the file, and what counts of it; `scale` is steps a metre."""
        counts = valid(judged)[0].numpy()
        depth = judged[0].numpy()
        self.pairs += 1
        self.pixels += depth.size
        self.measured += int(stored.count_nonzero())
        self.counting += int(np.count_nonzero(counts))
        step = math.ceil(math.sqrt(depth.size / PIXELS))
        some = stored[0].numpy()[::step, ::step]
        self.units.append(np.rint(some[some > 0].astype(np.float64) * scale).astype(np.int64))
        if not counts.any():
            self.empty += 1
            return
        known = depth[counts]
        self.nearest, self.farthest = min(self.nearest, float(known.min())), max(self.farthest, float(known.max()))
        largest, times = round(float(known.max()) * scale), int(np.count_nonzero(known == known.max()))
        if largest > self.largest:
            self.largest, self.at_largest = largest, 0
        self.at_largest += times if largest == self.largest else 0
        self.metres.append(depth[::step, ::step][counts[::step, ::step]])
        third = len(depth) // 3
        middle, lowest = (depth[rows][counts[rows]] for rows in (slice(third, 2 * third), slice(2 * third, 3 * third)))
        if min(middle.size, lowest.size) > SEEN * third * depth.shape[1]:
            self.below.append(float(np.median(lowest) / np.median(middle)))


def _steps_of(source: DepthFiles) -> float:
    """In how many steps a metre values are counted: the files' own units, or of floats millimetres."""
    return source.depth_scale if source.whole_numbers else 1000.0


def _look(source: DepthFiles) -> _Seen:
    seen = _Seen()
    places = evenly(PAIRS, len(source))
    for place in track(places, f"depth of {source.name}", len(places)):
        try:
            stored, depth = source.measured(int(place))
        except UnreadableImage:  # training counts and names them
            continue
        seen.add(stored, depth, _steps_of(source))
    return seen


def _why_none_counts(seen: _Seen, source: DepthFiles) -> str:
    if not seen.measured:
        return f"no pixel of the {seen.pairs} pairs that were looked at is measured: all of them are 0 in the files"
    held = np.concatenate(seen.units) / _steps_of(source)
    said = f"; range={_text(source.depth_range)} in its dataset.json" if source.depth_range is not None else ""
    return (
        f"no pixel of the {seen.pairs} pairs that were looked at counts: the files hold {_from_to(held)} m at "
        f"{source.depth_scale:g} file units a metre (data.depth_scale: {UNITS}{said})"
    )


def _faults(seen: _Seen, source: DepthFiles) -> list[str]:
    """What looks wrong, each with what mends it; empty for depth like that of usual cameras."""
    metres, units, scale = np.concatenate(seen.metres), np.concatenate(seen.units), _steps_of(source)
    faults = []
    if seen.empty:
        faults.append(f"{seen.empty} of {seen.pairs} pairs have no pixel that counts")
    if seen.counting < (1 - LEFT_OUT) * seen.measured and source.depth_range is not None:
        faults.append(
            f"range={_text(source.depth_range)} in its dataset.json leaves out {1 - seen.counting / seen.measured:.0%} "
            f"of what the files hold, {_from_to(units / scale)} m: is data.depth_scale (or depth_scale there) right?"
        )
    values = np.unique(units)
    spike = seen.at_largest / seen.counting
    if spike >= SPIKE[source.whole_numbers and seen.largest == LARGEST] and len(values) > 1:
        stored = f", {seen.largest} in the files" if source.whole_numbers else ""
        faults.append(
            f"{spike:.1%} of it is {seen.largest / scale:g} m{stored}, the largest number there: "
            f"where that means that nothing was measured, give range=[NEAREST, FARTHEST] in dataset.json"
        )
    median = float(np.median(metres))
    if source.depth_range is None and not NEAR <= median <= FAR:
        faults.append(
            f"a median of {median:.3g} m is {'nearer' if median < NEAR else 'farther'} than cameras see: "
            f"data.depth_scale says how many units of the files are a metre ({UNITS})"
        )
    if source.whole_numbers:
        faults += _steps(units, values, scale)
    farther = [ratio > BELOW for ratio in seen.below]
    if len(farther) >= FEW_PAIRS and sum(farther) >= MOST * len(farther):
        faults.append(
            f"in {sum(farther)} of {len(farther)} pairs it is farther below than in the middle, which floors and roads "
            f"are not: are the files disparity (larger = nearer) instead of depth, or upside down "
            f"(data.depth_orientation)?"
        )
    return faults


def _steps(units: Int64[np.ndarray, " _"], values: Int64[np.ndarray, " _"], scale: float) -> list[str]:
    """Files whose values are all multiples of a number that tells how they were written."""

    def multiples(step: int) -> bool:
        return float((units % step == 0).mean()) >= STEPS

    if len(values) >= EIGHT_BITS and (multiples(256) or multiples(257)):
        return [
            "all values in the files are multiples of 256 or 257: they are of 8 bits, or whole numbers of disparity; "
            "depth in metres x data.depth_scale has more steps"
        ]
    if len(values) < DISTINCT:
        return []
    if multiples(8) and not multiples(16) and scale % 8000:
        return [
            "all values in the files are multiples of 8, as in SUN RGB-D's, which hold millimetres with their bits "
            "rotated: write (d >> 3) | (d << 13) of them, in 16 bits, or give data.depth_scale=8000, which is right "
            "below 8.19 m"
        ]
    if multiples(5) and not multiples(10) and scale % 5000:
        return [
            f"all values in the files are multiples of 5, as in TUM RGB-D's, of 5000 units a metre; they are read at "
            f"{scale:g} (data.depth_scale)"
        ]
    return []


def _from_to(metres: np.ndarray) -> str:
    return f"{metres.min():.3g} to {metres.max():.3g}"


def _text(limits: Range | None) -> str:
    return "" if limits is None else f"[{limits[0]:g}, {limits[1]:g}]"
