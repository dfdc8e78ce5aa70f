"""Rendered streets seen from closer, as data that need no files."""

from __future__ import annotations

from depthjepa.data.layouts.scenes import Scenes, layout_of_scenes
from depthjepa.data.scenes.streets import CLOSEUPS


class Closeups(Scenes):
    """Streets whose nearest object covers half of the picture or more, as far as its shape allows."""

    word = "closeups"
    world = CLOSEUPS


LAYOUT = layout_of_scenes(Closeups, "rendered close-ups")
