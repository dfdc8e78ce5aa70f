"""What is known of the camera of an image, and of the surfaces that it sees.

A focal length is in pixels at the full width of the upright image; pixels are square, and the optical axis goes through
the middle of the image. Rendered scenes know the surfaces themselves.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from depthjepa.data.order import Mixture
from depthjepa.data.samples import Chosen, Source


@runtime_checkable
class Calibrated(Protocol):
    """A source that may know the focal length of each of its images."""

    def focal_length_of(self, index: int) -> float | None:
        """Focal length [px] of sample `index` at its full width; None: not known."""
        ...


@runtime_checkable
class Oriented(Protocol):
    """A source that knows the surfaces of its images exactly, without a look at their depth."""

    def normals_of(self, index: int) -> Float[Tensor, "3 h w"]:
        """Unit normals of sample `index` as in `Batch`, 0 where it has no depth."""
        ...


def focal_length_in(source: Source, index: int) -> float | None:
    """The focal length [px] of a sample of any source at its full width; None: not known."""
    source, index = own_source(source, index)
    return source.focal_length_of(index) if isinstance(source, Calibrated) else None


def own_source(source: Source, index: int) -> tuple[Source, int]:
    """Which source a sample of several comes from, and its number there."""
    if isinstance(source, Chosen):
        return own_source(source.source, int(source.numbers[index]))
    if isinstance(source, Mixture):
        part, place = source.part_of(index)
        return own_source(source.sources[part], place)
    return source, index


def tells_normals(source: Source, index: int) -> bool:
    """Whether the normals of a sample can be known: from its depth and focal length, or from the source itself."""
    own, number = own_source(source, index)
    return isinstance(own, Oriented) or focal_length_in(own, number) is not None
