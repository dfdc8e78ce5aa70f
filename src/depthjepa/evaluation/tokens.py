"""The tokens of a set of images for a probe that walks over them many times: kept in memory, or computed anew.

A set's tokens may go with what is known of its images' pixels, such as depth (`Pairs`), which is then kept beside them,
or read anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float16, Int64, Shaped
from torch import Tensor

from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.samples import Batch
from depthjepa.depth import valid
from depthjepa.evaluation.features import Encode, iterate_tokens
from depthjepa.faults import BadInput

KEPT_BYTES = 2**31  # of one encoder's tokens on all images; above, they are computed anew on every walk
LARGEST = 65504.0  # of float16

Beside = Callable[[Batch], Shaped[Tensor, "b 1 h w"]]  # what goes with the tokens of a batch


@runtime_checkable
class Tokens(Protocol):
    """Tokens by place: 0 is the first image of the set that could be read."""

    def parts(self, places: Sequence[Int64[Tensor, " _"]]) -> Iterator[Float[Tensor, "b n d"]]:
        """Yield the tokens at the places of every part, in order, float32 on the encoder's device."""
        ...


@runtime_checkable
class ImageSet(Protocol):
    """Images that can be read again and again, batch by batch: all in order, or some by their numbers."""

    def __len__(self) -> int: ...

    def __call__(self) -> Iterator[Batch]:
        """Read all images in order."""
        ...

    def chosen(self, numbers: Int64[Tensor, " _"]) -> Iterator[Batch]:
        """Read the images with these numbers (`Batch.index`), in this order."""
        ...


@dataclass(frozen=True, slots=True)
class Within:
    """A set of images whose depth [m] beyond a range is taken for unknown."""

    images: ImageSet
    nearest: float | None
    farthest: float | None

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self) -> Iterator[Batch]:
        """Read all images in order."""
        return self._limited(self.images())

    def chosen(self, numbers: Int64[Tensor, " _"]) -> Iterator[Batch]:
        """Read the images with these numbers, in this order."""
        return self._limited(self.images.chosen(numbers))

    def _limited(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            depth = depth_of(batch)
            known = valid(depth, self.nearest or 1e-3, self.farthest or math.inf)
            yield replace(batch, depth=torch.where(known, depth, 0))


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Tokens in half precision on the CPU, as `values` x `scale` + `centre`.

    Centre and scale are about the mean and the deviation of every channel, so that a channel's large mean takes none
    of the digits.
    """

    values: Float16[Tensor, "images n d"]
    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    device: torch.device

    def parts(self, places: Sequence[Int64[Tensor, " _"]]) -> Iterator[Float[Tensor, "b n d"]]:
        """Yield parts of what is kept."""
        centre, scale = self.centre.to(self.device), self.scale.to(self.device)
        for part in places:
            yield self.values[part].to(self.device).float().mul_(scale).add_(centre)


@dataclass(frozen=True, slots=True)
class ComputedTokens:
    """Tokens that are encoded anew on every walk.

    `read` gives batches of the images at the numbers of a source, in their order; `index` holds the number of the
    image at each place.
    """

    encode: Encode
    read: Callable[[Int64[Tensor, " _"]], Iterable[Batch]]
    index: Int64[Tensor, " images"]

    def parts(self, places: Sequence[Int64[Tensor, " _"]]) -> Iterator[Float[Tensor, "b n d"]]:
        """Encode batch by batch, and cut the stream of tokens into the parts."""
        stream = ((tokens,) for _, tokens in _again(self.encode, self.read, self.index, places))
        for (tokens,) in _cut(stream, places):
            yield tokens


@runtime_checkable
class Pairs(Protocol):
    """Tokens and what goes with them by place: 0 is the first image of the set that could be read."""

    def parts(
        self, places: Sequence[Int64[Tensor, " _"]]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], Shaped[Tensor, "b 1 h w"]]]:
        """Yield both at the places of every part, in order, the tokens in float32, on the encoder's device."""
        ...


@dataclass(frozen=True, slots=True)
class KeptPairs:
    """Tokens in half precision beside what goes with them."""

    tokens: KeptTokens
    beside: Shaped[Tensor, "images 1 h w"]

    def parts(
        self, places: Sequence[Int64[Tensor, " _"]]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], Shaped[Tensor, "b 1 h w"]]]:
        """Yield parts of what is kept."""
        for part, tokens in zip(places, self.tokens.parts(places), strict=True):
            yield tokens, self.beside[part].to(tokens.device)


@dataclass(frozen=True, slots=True)
class ComputedPairs:
    """Images that are read and encoded anew on every walk; fields as in `ComputedTokens`."""

    encode: Encode
    read: Callable[[Int64[Tensor, " _"]], Iterable[Batch]]
    index: Int64[Tensor, " images"]
    beside: Beside

    def parts(
        self, places: Sequence[Int64[Tensor, " _"]]
    ) -> Iterator[tuple[Float[Tensor, "b n d"], Shaped[Tensor, "b 1 h w"]]]:
        """Encode batch by batch, and cut the stream into the parts."""
        stream = (
            (tokens, self.beside(batch).to(tokens.device))
            for batch, tokens in _again(self.encode, self.read, self.index, places)
        )
        for part in _cut(stream, places):
            yield part[0], part[1]


def depth_of(batch: Batch) -> Float[Tensor, "b 1 h w"]:
    """The depth [m] of a batch; raises `BadInput` where it has none."""
    if batch.depth is None:
        raise BadInput(f"a depth probe needs depth, and these images have none: give {with_depth()}")
    return batch.depth


def pairs_of(encode: Encode, images: ImageSet, beside: Beside = depth_of) -> tuple[Pairs, Int64[Tensor, " images"]]:
    """Encode every image of a set once; its tokens with what goes `beside` them, kept where both have room.

    Also returned are the numbers of the images that could be read.
    """
    keeper: TokenKeeper | None = None
    parts, index = list[Tensor](), list[Tensor]()
    for batch, tokens in iterate_tokens(encode, images()):
        part = beside(batch)
        keeper = keeper or TokenKeeper(len(images), len(images), beside=part[0].numel() * part.element_size())
        keeper.add(tokens)
        if not keeper.full:
            parts.append(part.cpu())
        index.append(batch.index.cpu())
    numbers = torch.cat(index) if index else torch.zeros(0, dtype=torch.long)
    if keeper is not None and (kept := keeper.result()) is not None:
        return KeptPairs(kept, torch.cat(parts)), numbers
    return ComputedPairs(encode, images.chosen, numbers, beside), numbers


def _again(
    encode: Encode,
    read: Callable[[Int64[Tensor, " _"]], Iterable[Batch]],
    index: Int64[Tensor, " images"],
    places: Sequence[Int64[Tensor, " _"]],
) -> Iterator[tuple[Batch, Float[Tensor, "b n d"]]]:
    """Read and encode the images at these places; ends where one cannot be read any more."""
    for batch, tokens in iterate_tokens(encode, read(index[torch.cat(list(places))])):
        if batch.skipped:
            return
        yield batch, tokens


def _cut(stream: Iterator[tuple[Tensor, ...]], places: Sequence[Int64[Tensor, " _"]]) -> Iterator[tuple[Tensor, ...]]:
    """Cut a stream of tensors (several of one length at a time) into parts as long as those of `places`."""
    waiting: list[tuple[Tensor, ...]] = []
    for part in places:
        while sum(len(each[0]) for each in waiting) < len(part):
            found = next(stream, None)
            if found is None:
                raise BadInput("images changed while they were probed: some that could be read no longer can")
            waiting.append(found)
        joined = [torch.cat(each) for each in zip(*waiting, strict=True)]
        yield tuple(each[: len(part)] for each in joined)
        waiting = [tuple(each[len(part) :] for each in joined)]


class TokenKeeper:
    """Takes the tokens of a pass batch by batch and keeps them, if they have room.

    `images` is how many the pass can bring, `sharing` how many the room has to hold in all, `beside` the bytes that an
    image takes besides its tokens.
    """

    def __init__(self, images: int, sharing: int, beside: int = 0) -> None:
        self.images, self.sharing, self.beside, self.count = images, sharing, beside, 0
        self.kept: KeptTokens | None = None
        self.full = False

    def add(self, tokens: Float[Tensor, "b n d"]) -> None:
        """Keep one batch."""
        if self.full:
            return
        if self.kept is None:
            if self.sharing * (tokens[0].numel() * 2 + self.beside) > KEPT_BYTES:
                self.full = True
                return
            flat = tokens.flatten(0, 1).cpu()
            scale = flat.std(0, correction=0)
            scale = torch.where(scale > 1e-6 * flat.abs().amax(0), scale, 1.0)
            values = torch.empty(self.images, *tokens.shape[1:], dtype=torch.float16)
            self.kept = KeptTokens(values, flat.mean(0), scale, tokens.device)
        kept = self.kept
        values = ((tokens.cpu() - kept.centre) / kept.scale).clamp_(-LARGEST, LARGEST)
        kept.values[self.count : self.count + len(tokens)] = values
        self.count += len(tokens)

    def result(self) -> KeptTokens | None:
        """What was kept; None where it had no room."""
        if self.kept is None:
            return None
        return KeptTokens(self.kept.values[: self.count], self.kept.centre, self.kept.scale, self.kept.device)
