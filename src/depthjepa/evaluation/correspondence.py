"""Do two views of one point get the same feature? (Probe3D: El Banani et al. 2024, section 4.2.)

Each patch of the first view whose middle is seen in the second one is a query; its match is the patch of the second
view whose token is nearest by cosine. The error is the distance from the middle of that patch to where the point really
is, in patches. Recall at r is the share of a pair's queries with an error of at most r, averaged over pairs; nothing is
fitted. Probe3D asks among images of ScanNet, in pixels and by mutual nearest neighbours; here all queries count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from depthjepa.data.cameras import own_source
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.data.transforms import Size, as_bytes, whole_view
from depthjepa.data.two_views import SeesTwice, TwoViews
from depthjepa.evaluation.features import Encode, refuse_non_finite
from depthjepa.evaluation.gathering import Views
from depthjepa.progress import track

RADII = (1, 2, 4)  # patches
TURNS = (10, 20, 30)  # degrees up to which a pair belongs to a class of turns
POSITION = "position alone"  # matches each patch with the one at its own place
LEAST = 4  # queries of a pair that counts


@dataclass(frozen=True, slots=True)
class Queries:
    """What is asked of one pair: patches of the first view, and where their middles are in the second [patches]."""

    patches: Int64[Tensor, " queries"]
    truth: Float[Tensor, "queries 2"]  # down, right; 0.5, 0.5 is the middle of the first patch


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair that counted: the number of its first view in the source, its cameras, and what each row finds."""

    number: int
    apart: float  # [m]
    turn: float  # [degrees]
    queries: int
    recalls: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A pair that is drawn: both views, its queries, and each row's matches."""

    first: UInt8[np.ndarray, "h w 3"]
    second: UInt8[np.ndarray, "h w 3"]
    queries: Queries
    matches: dict[str, Float[np.ndarray, "queries 2"]]


@dataclass(frozen=True, slots=True)
class Correspondence:
    """All pairs that counted, how many images have none, and the few pairs that are drawn."""

    pairs: list[Judged]
    left_out: int  # images without a second view, or with too few queries
    drawn: list[Drawn]
    grid: Size

    @property
    def turns(self) -> Float[np.ndarray, " pairs"]:
        """How far the cameras of each pair are turned [degrees]."""
        return np.array([pair.turn for pair in self.pairs])

    def recalls(self, name: str) -> Float[np.ndarray, "pairs radii"]:
        """Those of one row."""
        return np.array([pair.recalls[name] for pair in self.pairs]).reshape(-1, len(RADII))

    def figures(self, name: str) -> dict[str, float]:
        """Recalls [%] of one row: of all pairs, and of those of each class of turns; nan where there are none."""
        found, turns = self.recalls(name), self.turns
        classes = {"": turns >= 0}
        for low, high in zip((0, *TURNS), TURNS, strict=False):
            classes[f"_turn_{high}"] = (turns >= low) & ((turns < high) | (high == TURNS[-1]))
        return {
            f"recall_{radius}{name}": _mean(found[among, place])
            for name, among in classes.items()
            for place, radius in enumerate(RADII)
        }


def _mean(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else float("nan")


def queries_of(pair: TwoViews, grid: Size) -> Queries:
    """The patches of the first view whose middle pixel is seen in the second view."""
    (rows, cols), (height, width) = grid, pair.match.shape[:2]
    down, right = (
        (torch.arange(count) * 2 + 1) * side // (2 * count) for count, side in ((rows, height), (cols, width))
    )
    truth = pair.match[down[:, None], right[None]].reshape(-1, 2) * torch.tensor([rows, cols])
    known = torch.isfinite(truth).all(1)
    return Queries(known.nonzero()[:, 0], truth[known])


def nearest(
    first: Float[Tensor, "n d"], second: Float[Tensor, "m d"], queries: Queries, grid: Size
) -> Float[Tensor, "queries 2"]:
    """Middles of the patches of the second view whose tokens are nearest to those of the queries [patches]."""
    asked, offered = F.normalize(first[queries.patches.to(first.device)], dim=1), F.normalize(second, dim=1)
    return middles((asked @ offered.T).argmax(1).cpu(), grid)


def middles(patches: Int64[Tensor, " queries"], grid: Size) -> Float[Tensor, "queries 2"]:
    """Middles of patches [patches]: down, right."""
    return torch.stack([patches // grid[1], patches % grid[1]], dim=1) + 0.5


def recalls(found: Float[Tensor, "queries 2"], truth: Float[Tensor, "queries 2"]) -> tuple[float, ...]:
    """Shares of the queries whose error is at most each radius."""
    error = (found - truth).norm(dim=1)
    return tuple(float((error <= radius).float().mean()) for radius in RADII)


def position_alone(grid: Size) -> Encode:
    """An encoder that tells where a patch is and nothing of what it shows: each patch matches the one at its place."""
    places = torch.eye(grid[0] * grid[1])
    return lambda images: places.to(images.device).expand(len(images), -1, -1)


def correspondence(
    encoders: Mapping[str, Encode], views: Views, size: Size, grid: Size, together: int, pictures: int
) -> Correspondence:
    """Match the pairs of a split by each encoder; `together` pairs are encoded at once, the first few are drawn."""
    judged, drawn = list[Judged](), list[Drawn]()
    for chunk in _chunks(views, together):
        asked = [(number, pair, queries_of(pair, grid)) for number, pair in chunk]
        kept = [each for each in asked if len(each[2].patches) >= LEAST]
        if not kept:
            continue
        images = torch.cat([_seen([getattr(pair, view) for _, pair, _ in kept], size) for view in ("first", "second")])
        names = [views.source.name_of(number) for number, _, _ in kept] * 2
        tokens = {name: _encoded(encode, images, names) for name, encode in encoders.items()}
        for place, (number, pair, queries) in enumerate(kept):
            other = len(kept) + place
            found = {name: nearest(each[place], each[other], queries, grid) for name, each in tokens.items()}
            scores = {name: recalls(each, queries.truth) for name, each in found.items()}
            judged.append(Judged(number, pair.apart, pair.turn, len(queries.patches), scores))
            if len(drawn) < pictures:
                first, second = as_bytes(images[[place, other]])
                drawn.append(Drawn(first, second, queries, {name: each.numpy() for name, each in found.items()}))
    return Correspondence(judged, views.used - len(judged), drawn, grid)


def _chunks(views: Views, together: int) -> Iterator[list[tuple[int, TwoViews]]]:
    """Pairs of the samples of a split, a few at a time; what is unreadable goes into `views.skipped`."""
    chunk: list[tuple[int, TwoViews]] = []
    for number in track(views.numbers.tolist(), "two views", len(views)):
        source, own = own_source(views.source, number)
        try:
            pair = source.two_views(own) if isinstance(source, SeesTwice) else None
        except UnreadableImage as fault:
            views.skipped[f"image {number}: {fault}"] = None  # of a partner that cannot be read, for each of its pairs
            continue
        if pair is not None:
            chunk.append((number, pair))
        if len(chunk) == together:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _seen(images: list[UInt8[Tensor, "3 _ _"]], size: Size) -> Float[Tensor, "b 3 h w"]:
    """Whole images at one size, RGB in [0, 1], as all probes with depth see them."""
    return torch.stack([whole_view(Sample(image, None, -1, ""), size).image for image in images]).float() / 255


def _encoded(encode: Encode, images: Float[Tensor, "b 3 h w"], names: list[str]) -> Float[Tensor, "b n d"]:
    with torch.no_grad():
        tokens = encode(images).float()
    refuse_non_finite(tokens, names)
    return tokens
