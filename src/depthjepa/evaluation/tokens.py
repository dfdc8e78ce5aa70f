"""The tokens of a set of images for a probe that walks over them many times: kept in memory, or computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.evaluation.features import Encode, iterate_tokens
from depthjepa.faults import BadInput

KEPT_BYTES = 2**31  # of one encoder's tokens on all images; above, they are computed anew on every walk
LARGEST = 65504.0  # of float16


@runtime_checkable
class Tokens(Protocol):
    """Tokens by place: 0 is the first image of the set that could be read."""

    def parts(self, places: Sequence[Int64[Tensor, " _"]]) -> Iterator[Float[Tensor, "b n d"]]:
        """Yield the tokens at the places of every part, in order, float32 on the encoder's device."""
        ...


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Tokens in half precision on the CPU, as `values` x `scale` + `centre`.

    Centre and scale are about the mean and the deviation of every channel, so that a channel's large mean takes none
    of the digits.
    """

    values: Float16[Tensor, "images n d"]
    centre: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    where: torch.device

    def parts(self, places: Sequence[Int64[Tensor, " _"]]) -> Iterator[Float[Tensor, "b n d"]]:
        """Yield parts of what is kept."""
        centre, scale = self.centre.to(self.where), self.scale.to(self.where)
        for part in places:
            yield self.values[part].to(self.where).float().mul_(scale).add_(centre)


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
        waiting: list[Tensor] = []
        stream = iterate_tokens(self.encode, self.read(self.index[torch.cat(list(places))]))
        for part in places:
            while sum(map(len, waiting)) < len(part):
                batch, tokens = next(stream, (None, None))
                if batch is None or tokens is None or batch.skipped:
                    raise BadInput("images changed while they were probed: some that could be read no longer can")
                waiting.append(tokens)
            joined = torch.cat(waiting)
            yield joined[: len(part)]
            waiting = [joined[len(part) :]]


class TokenKeeper:
    """Takes the tokens of a pass batch by batch and keeps them, if they have room.

    `images` is how many the pass can bring, `sharing` how many the room has to hold in all.
    """

    def __init__(self, images: int, sharing: int) -> None:
        self.images, self.sharing, self.count = images, sharing, 0
        self.kept: KeptTokens | None = None
        self.full = False

    def add(self, tokens: Float[Tensor, "b n d"]) -> None:
        """Keep one batch."""
        if self.full:
            return
        if self.kept is None:
            if self.sharing * tokens[0].numel() * 2 > KEPT_BYTES:
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
        return KeptTokens(self.kept.values[: self.count], self.kept.centre, self.kept.scale, self.kept.where)
