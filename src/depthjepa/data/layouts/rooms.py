"""Rendered rooms as data that need no files."""

from __future__ import annotations

from depthjepa.data.layouts.scenes import Scenes, layout_of_scenes
from depthjepa.data.scenes.rooms import ROOMS


class Rooms(Scenes):
    """Rooms with furniture, in all else as `Scenes`; they have no labels, but label maps."""

    word = "rooms"
    world = ROOMS


LAYOUT = layout_of_scenes(Rooms, "rendered rooms")
