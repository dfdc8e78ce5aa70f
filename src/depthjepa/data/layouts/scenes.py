"""Rendered scenes as data that need no files: streets here, rooms in rooms.py."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split
from depthjepa.data.layouts.layout import DataLayout
from depthjepa.data.samples import Sample
from depthjepa.data.scenes.layout import Draws, World
from depthjepa.data.scenes.photographs import Photographs, covered_name, open_photographs
from depthjepa.data.scenes.rendering import Rendered, picture, render, surface_normals
from depthjepa.data.scenes.streets import STREETS
from depthjepa.data.scenes.two_views import matches, second_view
from depthjepa.data.two_views import TwoViews
from depthjepa.faults import BadInput, nearest

NAME = "scenes"  # what data.root says for streets
_CPU = torch.device("cpu")
_KEPT_TOGETHER = 32  # scenes that are rendered at once and kept
_FIRST_INDEX = {"train": 0, "val": 2**40}


class Scenes:
    """Rendered scenes as a data source: streets. Training and validation scenes are different scenes of one seed."""

    word: ClassVar[str] = NAME  # what data.root says for them
    world: ClassVar[World] = STREETS
    has_depth = True
    knows_focal_length = True
    keeps_samples = True

    def __init__(
        self, seed: int, split: str, count: int, size: tuple[int, int], photographs: Photographs | None = None
    ) -> None:
        if split not in _FIRST_INDEX:
            known = " or ".join(_FIRST_INDEX)
            raise BadInput(f"scenes have no split {split!r}: use {known}{nearest(split, _FIRST_INDEX)}")
        if not 0 < count <= _FIRST_INDEX["val"]:
            raise BadInput(f"the number of scenes must be from 1 to {_FIRST_INDEX['val']}, not {count}")
        self.seed, self.split, self.count, self.size, self.photographs = seed, split, count, size, photographs
        self.classes, self.segment_classes = self.world.kinds, self.world.classes
        self._covered = "" if photographs is None else photographs.digest
        self._names = f"{self.word}-{seed}{'-' * bool(self._covered)}{self._covered}/{split}"
        self._chunks = _kept(self._names, count, size)
        self._cast: tuple[int, Float32[Tensor, "b 3 h w"]] | None = None  # normals of the scenes last asked for

    @property
    def name(self) -> str:
        """`scenes:SEED`, and which photographs cover them: figures of others are of other data."""
        return covered_name(f"{self.word}:{self.seed}", self._covered)

    def __len__(self) -> int:
        return self.count

    def name_of(self, index: int) -> str:
        """A name that no scene of another seed, split or folder of photographs has: a cache finds latents by it."""
        return f"{self._names}/{index:06d}"

    def group_of(self, index: int) -> str:
        """Every scene is a place of its own."""
        return self.name_of(index)

    def focal_length_of(self, index: int) -> float:
        """Focal length [px] of the camera of scene `index`."""
        scenes, row = self._rendered(index)
        return float(scenes.focal[row])

    def sample(self, index: int) -> Sample:
        """Return scene `index` of the split, with its label map: that is known anyway.

        Scenes are rendered in chunks when first asked for, and kept: 8 bytes a pixel, for as long as the
        process lives, so that runs and probes on the same scenes render them once.
        """
        scenes, row = self._rendered(index)
        label, label_map = int(scenes.labels[row]), scenes.classes[row][None]
        return Sample(scenes.images[row], scenes.depth[row], label, self.name_of(index), label_map)

    def labelled_sample(self, index: int) -> Sample:
        """What `sample` gives."""
        return self.sample(index)

    def normals_of(self, index: int) -> Float32[Tensor, "3 h w"]:
        """Unit normals that scene `index` sees, exactly: x right, y down, z forward; 0 where there is no depth."""
        first = index // _KEPT_TOGETHER * _KEPT_TOGETHER
        if self._cast is None or self._cast[0] != first:
            numbers = np.arange(first, min(first + _KEPT_TOGETHER, self.count)) + _FIRST_INDEX[self.split]
            self._cast = first, surface_normals(numbers, seed=self.seed, size=self.size, world=self.world)
        return self._cast[1][index - first]

    def tells_pairs(self) -> bool:
        """Every scene has a second camera."""
        return True

    def two_views(self, index: int) -> TwoViews:
        """Scene `index` from its own camera and from a second one; see scenes/two_views.py."""
        number = np.array([index + _FIRST_INDEX[self.split]])
        count = 0 if self.photographs is None else len(self.photographs)
        first = self.world.arrange(number, seed=self.seed, photographs=count)
        second = second_view(first, Draws(number, self.seed))
        pictures = (picture(each, self.size, _CPU, self.world, self.photographs) for each in (first, second.layout))
        one, other = (each.images[0] for each in pictures)
        apart = float(np.linalg.norm(second.place[0]))
        return TwoViews(one, other, matches(first, second, self.size)[0], apart, float(second.turn[0]))

    def _rendered(self, index: int) -> tuple[Rendered, int]:
        """The chunk of scenes that `index` is in, and its row there."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        chunk, row = divmod(index, _KEPT_TOGETHER)
        if chunk not in self._chunks:
            first = chunk * _KEPT_TOGETHER
            numbers = np.arange(first, min(first + _KEPT_TOGETHER, self.count)) + _FIRST_INDEX[self.split]
            self._chunks[chunk] = render(
                numbers, seed=self.seed, size=self.size, world=self.world, photographs=self.photographs
            )
        return self._chunks[chunk], row


@functools.cache
def _kept(names: str, count: int, size: tuple[int, int]) -> dict[int, Rendered]:
    """The chunks of one source that are rendered already; all its instances share them."""
    return {}


def layout_of_scenes(source: type[Scenes], noun: str) -> DataLayout:
    """The row of a kind of rendered scenes: a root is its word, or WORD:SEED."""
    word = source.word

    def seed_of(root: str) -> int:
        first, colon, seed = root.partition(":")
        if first != word or (colon and not seed.isdecimal()):
            raise BadInput(f"data.root={root!r} are no {noun}: write {word} or {word}:SEED, as in {word}:3")
        return int(seed or 0)

    def open_scenes(config: DataConfig, root: str, split: Split) -> Scenes:
        count = config.scenes_train if split == "train" else config.scenes_val
        photographs = None if config.scene_textures is None else open_photographs(config.scene_textures)
        return source(seed_of(root), split, count, config.size, photographs)

    return DataLayout(
        noun=noun,
        states=f"is {noun}",
        matches=lambda root: root.partition(":")[0] == word,
        open=open_scenes,
        has_validation=lambda config, root: True,
        reads=("scenes_train", "scenes_val", "scene_textures"),
        may_have_depth=True,
        may_have_labels=bool(source.world.kinds),
        may_have_label_maps=True,
        source_name=lambda root: f"{word}:{seed_of(root)}",
        by_name=True,
        place=lambda root: None,
    )


LAYOUT = layout_of_scenes(Scenes, "rendered scenes")
