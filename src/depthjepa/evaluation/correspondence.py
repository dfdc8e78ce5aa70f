"""Do two views of one point get the same feature? (Probe3D: El Banani et al. 2024, section 4.2.)

Each patch of the first view whose middle is seen in the second one is a query; its match is the patch of the second
view whose token is nearest by cosine. The error is the distance from the middle of that patch to where the point really
is, in patches. Recall at r is the share of a pair's queries with an error of at most r, averaged over pairs; nothing is
fitted. Probe3D asks among images of ScanNet, in pixels and by mutual nearest neighbours; here all queries count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from depthjepa.data.cameras import own_source
from depthjepa.data.samples import UnreadableImage
from depthjepa.data.transforms import Size, as_bytes
from depthjepa.data.two_views import SeesTwice, TwoViews
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import Views
from depthjepa.faults import BadInput
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


@dataclass(slots=True)
class Matched:
    """What one encoder finds: recalls of each pair, and the matches of the pairs that are drawn."""

    recalls: list[tuple[float, ...]] = field(default_factory=list)
    shown: list[Float[np.ndarray, "queries 2"]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Correspondence:
    """Pairs that counted, and what each row finds in them. Of the first few, pictures and queries."""

    numbers: list[int]  # of the first views, in their source
    turns: Float[np.ndarray, " pairs"]  # [degrees]
    apart: Float[np.ndarray, " pairs"]  # [m]
    queries: int  # of all pairs
    left_out: int  # samples without a second view, or with too few queries
    rows: dict[str, Matched]
    first: UInt8[np.ndarray, "k h w 3"]
    second: UInt8[np.ndarray, "k h w 3"]
    shown: list[Queries]
    grid: Size

    def figures(self, name: str) -> dict[str, float]:
        """Recalls [%] of one row: of all pairs, and of those of each class of turns; nan where there are none."""
        found = np.array(self.rows[name].recalls).reshape(-1, len(RADII))
        figures = {}
        for place, radius in enumerate(RADII):
            figures[f"recall_{radius}"] = _mean(found[:, place])
        low = 0
        for high in TURNS:
            among = (self.turns >= low) & (self.turns < high if high < TURNS[-1] else True)
            for place, radius in enumerate(RADII):
                figures[f"recall_{radius}_turn_{high}"] = _mean(found[among, place])
            low = high
        return figures


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


def correspondence(
    encoders: Mapping[str, Encode], views: Views, size: Size, grid: Size, together: int, pictures: int
) -> Correspondence:
    """Match the pairs of a split by each encoder, and by position alone; `together` pairs are encoded at once."""
    rows = {name: Matched() for name in (POSITION, *encoders)}
    numbers, turns, apart, asked = list[int](), list[float](), list[float](), 0
    first, second, shown = list[np.ndarray](), list[np.ndarray](), list[Queries]()
    for chunk in _chunks(views, together):
        kept = [
            (number, pair, queries)
            for number, pair in chunk
            if len((queries := queries_of(pair, grid)).patches) >= LEAST
        ]
        if not kept:
            continue
        images = torch.cat(
            [_resized([getattr(pair, view) for _, pair, _ in kept], size) for view in ("first", "second")]
        )
        tokens = {name: _encoded(encode, images, kept[0][0]) for name, encode in encoders.items()}
        for place, (number, pair, queries) in enumerate(kept):
            drawn = len(shown) < pictures
            for name, matched in rows.items():
                found = (
                    middles(queries.patches, grid)
                    if name == POSITION
                    else nearest(tokens[name][place], tokens[name][len(kept) + place], queries, grid)
                )
                matched.recalls.append(recalls(found, queries.truth))
                if drawn:
                    matched.shown.append(found.numpy())
            if drawn:
                shown.append(queries)
                one, other = as_bytes(images[[place, len(kept) + place]])
                first.append(one)
                second.append(other)
            numbers.append(number)
            turns.append(pair.turn)
            apart.append(pair.apart)
            asked += len(queries.patches)
    one, other = (np.stack(each) if each else np.zeros((0, *size, 3), dtype=np.uint8) for each in (first, second))
    left_out = views.used - len(numbers)
    return Correspondence(numbers, np.array(turns), np.array(apart), asked, left_out, rows, one, other, shown, grid)


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


def _resized(images: list[UInt8[Tensor, "3 _ _"]], size: Size) -> Float[Tensor, "b 3 h w"]:
    """Whole images at one size, RGB in [0, 1]."""
    return torch.cat(
        [
            image[None].float() / 255
            if tuple(image.shape[1:]) == size
            else F.interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True).clamp(0, 1)
            for image in images
        ]
    )


def _encoded(encode: Encode, images: Float[Tensor, "b 3 h w"], first: int) -> Float[Tensor, "b n d"]:
    with torch.no_grad():
        tokens = encode(images).float()
    if not torch.isfinite(tokens).all():
        raise BadInput(f"the encoder gives features that are not finite for the pairs from image {first} on")
    return tokens
