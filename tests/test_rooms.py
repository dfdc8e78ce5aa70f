"""Claims about the rendered rooms: closed, exact, pure functions, furniture that stands and things that lie."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from depthjepa.data.config import DataConfig
from depthjepa.data.loading import open_source
from depthjepa.data.samples import segment_classes
from depthjepa.data.scenes.layout import ABSENT, Layout
from depthjepa.data.scenes.rendering import Rendered, picture, render, surface_normals
from depthjepa.data.scenes.rooms import CLASSES, FURNITURE, HUNG, ROOMS, SHELL, THINGS, arrange
from slow_scenes import slow_depth

MANY = np.arange(400)


@pytest.fixture(scope="module")
def layout() -> Layout:
    return arrange(MANY, seed=5)


@pytest.fixture(scope="module")
def rooms() -> Rendered:
    return render(MANY, seed=5, size=(32, 32), world=ROOMS)


def of_kinds(layout: Layout, kinds: tuple[str, ...]) -> np.ndarray:
    """Which primitives are parts of objects of these kinds, and there."""
    solids = layout.primitives
    named: np.ndarray = np.isin(solids.category, [CLASSES.index(kind) for kind in kinds]) & (solids.shape != ABSENT)
    return named


def in_the_room(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Centres of all primitives (aside, height above the floor, ahead) in the room's frame, and half their extents."""
    solids = layout.primitives
    cosine, sine = (part[:, None] for part in layout.surroundings.street.T)
    x, y, z = np.moveaxis(solids.centre, -1, 0)
    centre = np.stack([cosine * x - sine * z, y + layout.camera.height[:, None], sine * x + cosine * z], axis=-1)
    own_cosine, own_sine = np.moveaxis(solids.turn, -1, 0)
    between = np.abs(own_cosine * cosine + own_sine * sine), np.abs(own_sine * cosine - own_cosine * sine)
    a, b, c = np.moveaxis(solids.half, -1, 0)
    return centre, np.stack([a * between[0] + c * between[1], b, a * between[1] + c * between[0]], axis=-1)


def test_depth_equals_a_slow_ray_caster() -> None:
    size, indices = 16, np.array([3, 8, 61, 2**40 + 5, 777])
    layout, fast = arrange(indices, seed=11), render(indices, seed=11, size=(size, size), world=ROOMS)
    wrong = pixels = 0
    for scene in range(len(indices)):
        depth, category = slow_depth(layout, scene, size, ROOMS)
        close = np.isclose(fast.depth[scene, 0].numpy(), depth, rtol=1e-4, atol=0)
        wrong += (~close | (fast.classes[scene].numpy() != category)).sum()
        pixels += close.size
    assert wrong < 0.01 * pixels  # thin legs


def test_a_room_is_closed_and_as_large_as_rooms_are(rooms: Rendered) -> None:
    assert not bool((rooms.classes == CLASSES.index("outside")).any())
    assert float(rooms.depth.min()) > 0.1 and float(rooms.depth.max()) < 14
    median = rooms.depth.flatten(1).median(1).values
    assert 1 < float(median.median()) < 4
    assert bool((rooms.labels == -1).all())


def test_what_is_seen_is_not_the_shell_alone(rooms: Rendered) -> None:
    share = torch.bincount(rooms.classes.flatten().long(), minlength=len(CLASSES)) / rooms.classes.numel()
    of = dict(zip(CLASSES, share.tolist(), strict=True))
    assert sum(of[kind] for kind in FURNITURE) > 0.2
    assert min(of[kind] for kind in (*FURNITURE, *HUNG, *SHELL, "floor")) > 0.002
    assert sum(of[kind] for kind in THINGS) > 0.002


def test_furniture_stands_on_the_floor_inside_of_the_walls(layout: Layout) -> None:
    centre, reach = in_the_room(layout)
    furniture, walls = of_kinds(layout, FURNITURE), of_kinds(layout, ("wall",))
    low = np.where(furniture, centre[..., 1] - reach[..., 1], np.inf)
    assert (low.min(axis=1)[furniture.any(axis=1)] < 1e-9).all() and low.min() > -1e-9
    tolerance = 0.03  # handles of a cabinet
    for axis in (0, 2):
        inner = np.where(walls, np.abs(centre[..., axis]) - reach[..., axis], np.inf)
        for sign in (-1, 1):
            wall = np.where(walls & (sign * centre[..., axis] > reach[..., axis]), inner, np.inf).min(axis=1)
            outermost = np.where(furniture, sign * centre[..., axis] + reach[..., axis], -np.inf).max(axis=1)
            assert (outermost <= wall + tolerance).all()


def test_things_lie_on_a_flat_top(layout: Layout) -> None:
    centre, reach = in_the_room(layout)
    things, hosts = of_kinds(layout, THINGS), of_kinds(layout, ("table", "cabinet", "carton", "stool"))
    assert things.sum() > 300
    tops = centre[..., 1] + reach[..., 1]
    for scene, thing in np.argwhere(of_kinds(layout, ("book", "ball", "bowl"))):  # of one part
        bottom = centre[scene, thing, 1] - reach[scene, thing, 1]
        under = hosts[scene] & np.isclose(tops[scene], bottom, atol=1e-6)
        aside = np.abs(centre[scene, :, ::2] - centre[scene, thing, ::2]) <= reach[scene, :, ::2] + 1e-9
        assert (under & aside.all(axis=-1)).any()


def test_nothing_stands_in_the_camera_and_heights_are_those_of_people(layout: Layout) -> None:
    assert 0.5 <= layout.camera.height.min() < 0.6 and 1.9 < layout.camera.height.max() <= 2.0
    centre, reach = in_the_room(layout)
    present = of_kinds(layout, (*FURNITURE, *THINGS))
    eye = centre - np.array([0, 1, 0]) * layout.camera.height[:, None, None]
    assert not (present & (np.abs(eye) < reach).all(axis=-1)).any()


def test_pieces_do_not_stand_in_each_other() -> None:
    """Each piece rendered alone: where two are seen by one ray, neither begins inside of the other's box."""
    layout = arrange(np.arange(40), seed=9)
    centre, reach = in_the_room(layout)
    parts = layout.primitives.shape.shape[1]
    most = max(len(of) for of in np.split(np.arange(parts), np.flatnonzero(np.diff(layout.primitives.category[0])) + 1))
    assert most >= 6  # parts of a piece stand one after the other
    for scene in range(len(layout.labels)):
        boxes = []
        for piece in range(9):
            first = (5 + 4 + piece) * 6
            there = layout.primitives.shape[scene, first : first + 6] != ABSENT
            if there.any():
                low = (centre - reach)[scene, first : first + 6][there].min(axis=0)
                high = (centre + reach)[scene, first : first + 6][there].max(axis=0)
                boxes.append((low, high))
        for number, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:number]:
                shared = np.minimum(high, other_high) - np.maximum(low, other_low)
                assert (shared[[0, 2]] < 0.06).any()  # a window's sill and a sphere's box reach a little beyond


def test_a_room_is_the_same_in_any_batch_and_another_of_another_seed() -> None:
    indices = np.array([40, 3, 2**40, 17])
    together = render(indices, seed=1, size=(24, 24), world=ROOMS)
    for row in range(len(indices)):
        one = render(indices[row : row + 1], seed=1, size=(24, 24), world=ROOMS)
        for field in fields(Rendered):
            assert torch.equal(getattr(one, field.name)[0], getattr(together, field.name)[row])
    assert not torch.equal(together.images, render(indices, seed=2, size=(24, 24), world=ROOMS).images)


def test_normals_of_floor_and_ceiling_point_into_the_room() -> None:
    numbers = np.arange(12)
    seen = render(numbers, seed=3, size=(24, 24), world=ROOMS)
    normals = surface_normals(numbers, seed=3, size=(24, 24), world=ROOMS)
    assert torch.allclose(normals.norm(dim=1), torch.ones(12, 24, 24), atol=1e-4)
    y = normals[:, 1]  # down
    assert float(y[seen.classes == CLASSES.index("floor")].max()) < -0.5
    assert float(y[seen.classes == CLASSES.index("ceiling")].min()) > 0.5


def test_rooms_are_data_by_their_name() -> None:
    config = DataConfig(root="rooms:4", image_size=16, scenes_train=5, scenes_val=3)
    train, val = (open_source(config, split) for split in ("train", "val"))
    assert (len(train), len(val), train.name) == (5, 3, "rooms:4")
    assert train.classes == () and train.has_depth and segment_classes(train) == CLASSES
    assert train.name_of(2) == "rooms-4/train/000002"
    sample = train.sample(2)
    assert sample.label == -1 and sample.depth is not None
    assert torch.equal(sample.depth, render(np.array([2]), seed=4, size=(16, 16), world=ROOMS).depth[0])
    both = open_source(replace(config, root="scenes*1,rooms*1"), "train")
    assert both.classes == () and both.has_depth and len(both) == 10
    assert picture(arrange(np.array([2]), seed=4), (16, 16), torch.device("cpu"), ROOMS).depth.equal(sample.depth[None])
