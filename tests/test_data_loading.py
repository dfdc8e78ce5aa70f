"""Which samples a step sees, and how: the same for any number of workers, processes and any start."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa.data import order
from depthjepa.data.config import DataConfig
from depthjepa.data.loading import TrainingBatches, open_source, view_batches
from depthjepa.data.memory import in_memory
from depthjepa.data.order import Mixture, draw_keys, epoch_order, steps_per_epoch, wrap_note
from depthjepa.data.samples import Batch, Sample, Source, UnreadableImage
from depthjepa.distributed import Ranks
from depthjepa.faults import BadInput
from depthjepa.masks import MaskConfig
from tiny_images import write_classes, write_flat, write_pairs


class Numbered:
    """A source in memory: picture i is filled with i; some are unreadable, one may be at fault."""

    has_depth = True
    knows_focal_length = keeps_samples = False

    def __init__(
        self,
        length: int,
        broken: tuple[int, ...] = (),
        fault: int | None = None,
        classes: tuple[str, ...] = ("even", "odd"),
    ) -> None:
        self.name, self.classes = f"numbered{length}", classes
        self._length, self._broken, self._fault = length, broken, fault

    def __len__(self) -> int:
        return self._length

    def name_of(self, index: int) -> str:
        return f"{index}.jpg"

    def sample(self, index: int) -> Sample:
        if index == self._fault:
            raise BadInput(f"picture {index} is at fault")
        if index in self._broken:
            raise UnreadableImage(f"{index}.jpg: torn")
        gradient = torch.arange(40, dtype=torch.uint8).repeat(3, 36, 1)
        gradient[0] = index
        depth = gradient[1:2].float() + 1
        return Sample(gradient, depth, index % 2, f"{index}.jpg")


def test_two_folders_of_one_name_are_told_apart_in_a_mixture() -> None:
    sources = [Numbered(2), Numbered(3), Numbered(2)]
    for source, name in zip(sources, ("/a/photos", "/b/photos", "/b/photos-2"), strict=True):
        source.name = name
    mixed = Mixture(sources)
    names = [mixed.name_of(index) for index in range(7)]
    assert len(set(names)) == 7 and [names[0], names[2], names[5]] == [
        "photos/0.jpg",
        "photos-2/0.jpg",
        "photos-2-2/0.jpg",
    ]
    assert mixed.sample(2).name == "photos-2/0.jpg"


def test_a_source_of_next_to_no_weight_gives_nothing() -> None:
    indices, times = order._passes_in_windows(Numbered(20), 0, 0, "order", 0)
    assert indices.shape == times.shape == (0,)


def training(source: Source, **keys: object) -> TrainingBatches:
    given = {
        "source": source,
        "data": DataConfig(image_size=32, flip=True),
        "masks": MaskConfig(),
        "grid": (8, 8),
        "seed": 3,
        "batch_size": 8,
        "steps": 6,
    }
    return TrainingBatches(**{**given, **keys})


def merged(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Everything of several batches, one after the other."""
    parts = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("index", "images", "depth", "zoom", "labels")
    }
    for name in ("context", "targets", "valid"):
        parts[name] = torch.cat([getattr(batch.masks, name) for batch in batches])
    return parts


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    mine, theirs = merged(left), merged(right)
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


# training


def test_a_batch_is_what_the_axes_say() -> None:
    batch = next(iter(training(Numbered(30))))
    assert batch.images.shape == (8, 3, 32, 32) and batch.images.dtype == torch.float32
    assert batch.depth.shape == (8, 1, 32, 32)
    assert torch.equal((batch.images[:, 0] * 255).round().unique(), batch.index.sort().values.float())
    assert torch.equal(batch.labels, batch.index % 2)
    assert batch.names == tuple(f"{index}.jpg" for index in batch.index)
    assert (batch.zoom >= 1).all() and batch.zoom.unique().numel() > 4
    assert batch.masks is not None and len(batch.masks.context) == 8
    assert batch.images.min() >= 0 and batch.images.max() <= 1


def test_every_epoch_is_another_order_of_distinct_samples() -> None:
    batches = list(training(Numbered(30), steps=6))
    epochs = [merged(batches[first : first + 3])["index"] for first in (0, 3)]
    assert all(len(epoch.unique()) == 24 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_seed_and_epoch_change_the_views_but_not_the_sample() -> None:
    first, second = (next(iter(training(Numbered(8), seed=seed))) for seed in (0, 1))
    places = torch.argsort(first.index), torch.argsort(second.index)
    assert torch.equal(first.index[places[0]], second.index[places[1]])
    assert not torch.equal(first.zoom[places[0]], second.zoom[places[1]])


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_processes_and_micro_batches_share_the_same_global_batch(world: int, accumulate: int) -> None:
    source = Numbered(30)
    whole = list(training(source))
    shares = [list(training(source, ranks=Ranks(rank, world), accumulate=accumulate)) for rank in range(world)]
    assert {len(share) for share in shares} == {6 * accumulate}
    together = [share[turn] for turn in range(6 * accumulate) for share in shares]
    assert_equal(whole, together)


def test_views_do_not_depend_on_the_batch_size() -> None:
    source = Numbered(24)
    assert_equal(list(training(source, batch_size=8, steps=3)), list(training(source, batch_size=4, steps=6)))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_a_resumed_start_change_nothing(workers: int) -> None:
    source = Numbered(30, broken=(4, 5))
    whole = list(training(source, accumulate=2))
    data = DataConfig(image_size=32, flip=True, workers=workers)
    for start in (0, 1, 4):
        again = list(training(source, accumulate=2, data=data, start_step=start))
        assert len(again) == len(training(source, accumulate=2, start_step=start)) == 2 * (6 - start)
        assert_equal(whole[2 * start :], again)
        assert [batch.skipped for batch in again] == [batch.skipped for batch in whole[2 * start :]]


def test_light_changes_images_alone_and_is_a_function_of_seed_epoch_and_sample() -> None:
    def read(light: float, **keys: object) -> list[Batch]:
        return list(training(Numbered(32), data=DataConfig(image_size=32, flip=True, light=light), **keys))

    plain, lit = merged(read(0)), merged(read(0.4))
    assert not torch.equal(plain.pop("images"), lit["images"])
    for name, each in plain.items():
        assert torch.equal(each, lit[name]), name
    halves = merged(read(0.4, accumulate=2))
    assert all(torch.equal(halves[name], each) for name, each in lit.items())
    assert_equal(read(0.4)[4:], read(0.4, start_step=4))
    assert not torch.equal(merged(read(0.4, seed=4))["images"], lit["images"])


def test_reading_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(training(Numbered(30), data=DataConfig(image_size=32, workers=1, light=0.4), steps=2))
    list(view_batches(Numbered(8), (8, 8)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_source_smaller_than_a_batch_wraps_round_with_other_views() -> None:
    batch = next(iter(training(Numbered(3))))
    assert sorted(Counter(batch.index.tolist()).values()) == [2, 3, 3]
    assert len({image.numpy().tobytes() for image in batch.images}) == 8
    assert len(torch.unique(batch.masks.context, dim=0)) == 8
    assert steps_per_epoch(3, 8) == 1 and steps_per_epoch(17, 8) == 2
    assert wrap_note(3, 8) == "3 images are fewer than a batch of 8: the sampler wraps round, one step an epoch"
    assert wrap_note(8, 8) is None


def test_keys_tell_repeated_draws_apart() -> None:
    order = np.array([2, 0, 2, 1])
    assert draw_keys(order, 3, 4).tolist() == [2, 0, 5, 1]
    assert draw_keys(order, 3, 7).tolist() == [2, 0, 5, 1, 8, 3, 11]
    assert draw_keys(order, 3, 2).tolist() == [2, 0]


def test_an_unreadable_image_is_replaced_by_its_successor_and_named() -> None:
    source = Numbered(8, broken=(2, 3, 7))
    batch = next(iter(training(source)))
    intact = next(iter(training(Numbered(8))))
    expected = [{2: 4, 3: 4, 7: 0}.get(index, index) for index in intact.index.tolist()]
    assert batch.index.tolist() == expected
    assert Counter(batch.skipped) == {"2.jpg: torn": 1, "3.jpg: torn": 2, "7.jpg: torn": 1}
    assert torch.equal(batch.zoom, intact.zoom)


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_reach_the_user_as_one_clear_message(workers: int) -> None:
    data = DataConfig(image_size=32, workers=workers)
    with pytest.raises(BadInput) as fault:
        list(training(Numbered(8, fault=5), data=data))
    assert str(fault.value) == "picture 5 is at fault"
    with pytest.raises(BadInput, match=r"none of the 8 images of numbered8 can be read.*\.jpg: torn"):
        list(training(Numbered(8, broken=tuple(range(8))), data=data))
    with pytest.raises(BadInput) as fault:
        list(view_batches(Numbered(8, fault=5), (8, 8), workers=workers))
    assert str(fault.value) == "picture 5 is at fault"


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(BadInput, match=r"train.batch_size=9 must be a multiple of .* 2 x 2 = 4: take 8"):
        training(Numbered(30), batch_size=9, accumulate=2, ranks=Ranks(0, 2))


def test_without_masks_or_depth_a_batch_has_none() -> None:
    source = Mixture([Numbered(8), Numbered(9)])
    source.has_depth = False
    batch = next(iter(training(source, masks=None)))
    assert batch.masks is None and batch.depth is None


def test_boxes_and_mirrors_tell_which_part_of_the_image_a_view_is() -> None:
    """The picture's green tells the column: the mean of a view is that of its box, and its slope tells the mirror."""
    batches = list(training(Numbered(64), data=DataConfig(image_size=32, flip=True, crop_scale=(0.3, 0.6))))
    for batch in batches:
        assert batch.boxes is not None and batch.mirrored is not None
        green = batch.images[:, 1] * 255
        middle = 40 * (batch.boxes[:, 1] + batch.boxes[:, 3] / 2) - 0.5
        torch.testing.assert_close(green.mean((1, 2)), middle, atol=0.6, rtol=0)
        assert torch.equal(green[:, 0, -1] < green[:, 0, 0], batch.mirrored)
        torch.testing.assert_close((batch.boxes[:, 2] * batch.boxes[:, 3]) ** -0.5, batch.zoom)
    assert 0.2 < torch.cat([batch.mirrored for batch in batches]).float().mean() < 0.8
    whole = next(iter(view_batches(Numbered(4), (32, 32))))
    assert torch.equal(whole.boxes, torch.tensor([[0.0, 0, 1, 1]] * 4)) and not whole.mirrored.any()


def test_the_crop_keeps_the_proportions_of_the_target() -> None:
    """On a target twice as wide as high the crops are about twice as wide as high: nothing is squashed."""

    class Wide(Numbered):
        def sample(self, index: int) -> Sample:
            image = torch.zeros(3, 100, 200, dtype=torch.uint8)
            image[0] = torch.arange(100)[:, None]
            image[1] = torch.arange(200)
            return Sample(image, None, 0, "")

        has_depth = False

    data = DataConfig(image_size=(20, 40), crop_scale=(0.3, 0.5))
    images = torch.cat([batch.images for batch in training(Wide(64), data=data, grid=(10, 20))]) * 255
    spans = (images.amax((2, 3)) - images.amin((2, 3)))[:, :2]
    aspect = spans[:, 1] / spans[:, 0]
    assert aspect.min() > 1.3 and aspect.max() < 2.9 and 1.8 < aspect.median() < 2.2


# mixtures


def test_a_mixture_without_weights_is_every_sample_once() -> None:
    source = Mixture([Numbered(5), Numbered(7)])
    assert sorted(epoch_order(source, 0, 0).tolist()) == list(range(12))
    names = [source.sample(index).name for index in (0, 4, 5, 11)]
    assert names == ["numbered5/0.jpg", "numbered5/4.jpg", "numbered7/0.jpg", "numbered7/6.jpg"]
    assert source.classes == ("even", "odd") and source.sample(8).label == 1
    other = Mixture([Numbered(5), Numbered(7, classes=("a", "b"))])
    assert other.classes == () and other.sample(8).label == -1


def test_a_weighted_mixture_draws_by_weight_without_replacement_within_a_pass() -> None:
    source = Mixture([Numbered(30), Numbered(10)], [1.0, 3.0])
    for epoch in (0, 1):
        order = epoch_order(source, 0, epoch)
        assert len(order) == len(source) == 40
        large, small = order[order < 30], order[order >= 30]
        assert len(large) == 10 == len(set(large.tolist()))
        assert Counter(small.tolist()) == dict.fromkeys(range(30, 40), 3)
        keys = draw_keys(order, 40, 40)
        assert len(set(keys.tolist())) == 40 and (keys % 40 == order).all()
    assert epoch_order(source, 0, 0).tolist() == epoch_order(source, 0, 0).tolist()
    assert epoch_order(source, 0, 0).tolist() != epoch_order(source, 1, 0).tolist()


def test_shares_of_a_mixture_sum_to_the_epoch() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        lengths, weights = random.integers(1, 20, 4), random.random(4) ** 4 + 1e-6
        source = Mixture([Numbered(int(length)) for length in lengths], weights.tolist())
        order = epoch_order(source, 0, 0)
        counts = np.histogram(order, bins=[0, *np.cumsum(lengths)])[0]
        assert len(order) == lengths.sum()
        assert (np.abs(counts - lengths.sum() * weights / weights.sum()) < 1).all()


def test_several_roots_are_mixed(tmp_path: Path) -> None:
    for folder, count in (("a", 3), ("b", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    plain = open_source(DataConfig(root=f"{tmp_path}/a, {tmp_path}/b"), "train")
    weighted = open_source(DataConfig(root=f"{tmp_path}/a*2.5,{tmp_path}/b"), "train")
    assert isinstance(plain, Mixture) and isinstance(weighted, Mixture)
    assert (len(plain), plain.weights, weighted.weights) == (5, None, [2.5, 1.0])
    assert plain.sample(4).name == "b/1.png"  # images of several folders may have one name


# fixed views


def everything(batches: Iterator[Batch]) -> dict[str, list]:
    found = list(batches)
    return {
        "index": torch.cat([batch.index for batch in found]).tolist(),
        "sizes": [len(batch.index) for batch in found],
        "skipped": [name for batch in found for name in batch.skipped],
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_fixed_views_come_in_order(workers: int) -> None:
    found = everything(view_batches(Numbered(10), (16, 16), batch_size=4, workers=workers))
    assert found == {"index": list(range(10)), "sizes": [4, 4, 2], "skipped": []}
    batch = next(view_batches(Numbered(10), (36, 40)))
    assert torch.equal(batch.images[7, 0] * 255, torch.full((36, 40), 7.0))
    assert torch.equal(batch.depth[7], Numbered(10).sample(7).depth)
    assert batch.masks is None and (batch.zoom == 1).all()
    centre = next(view_batches(Numbered(10), (36, 36), view="centre"))
    assert torch.equal(centre.depth[7], Numbered(10).sample(7).depth[:, :, 2:38])
    assert centre.zoom[0] == pytest.approx((40 / 36) ** 0.5)


def test_a_limit_spreads_over_the_whole_source() -> None:
    assert everything(view_batches(Numbered(100), (8, 8), limit=4))["index"] == [12, 37, 62, 87]
    for limit in (1, 7, 99, 100, 1000):
        index = everything(view_batches(Numbered(100), (8, 8), limit=limit))["index"]
        assert len(set(index)) == min(limit, 100) and index == sorted(index)


@pytest.mark.parametrize("broken", [(1,), (0, 1, 2, 3), (4, 5, 6, 7), (8, 9), (0, 1, 2, 3, 6, 8, 9)])
def test_unreadable_images_are_left_out_of_fixed_views_and_all_named(broken: tuple[int, ...]) -> None:
    found = everything(view_batches(Numbered(10, broken), (8, 8), batch_size=4))
    assert found["index"] == [index for index in range(10) if index not in broken]
    assert sorted(found["skipped"]) == [f"{index}.jpg: torn" for index in broken]
    assert 0 not in found["sizes"]


def test_fixed_views_of_nothing_readable_are_a_fault() -> None:
    with pytest.raises(BadInput, match=r"none of the 3 images of numbered3 can be read.*0\.jpg: torn"):
        list(view_batches(Numbered(3, broken=(0, 1, 2)), (8, 8)))


def test_real_photographs_are_the_same_for_any_number_of_workers(real_data: Path) -> None:
    data = DataConfig(root=str(real_data / "kitti2015"), image_size=(96, 320))
    source = open_source(data, "train")
    plain = list(training(source, data=data, grid=(6, 20), steps=2))
    shared = list(training(source, data=replace(data, workers=2), grid=(6, 20), steps=2))
    assert_equal(plain, shared)
    assert plain[0].depth.max() < 300 and (plain[0].depth == 0).any()


def test_every_source_knows_the_names_of_its_samples_without_decoding(tmp_path: Path) -> None:
    pairs, classes = write_pairs(tmp_path / "pairs", 3, 2), write_classes(tmp_path / "classes", 3)
    flat = write_flat(tmp_path / "flat", 3)
    with tarfile.open(tmp_path / "train-000.tar", "w") as shard:
        for file in sorted(flat.glob("*")):
            shard.add(file, file.name)
    roots = (pairs, classes, flat, tmp_path / "train-000.tar", "scenes", f"{pairs},{flat}")
    for root in roots:
        source = open_source(DataConfig(root=str(root), image_size=16, scenes_train=2), "train")
        names = [source.name_of(index) for index in range(len(source))]
        assert names == [source.sample(index).name for index in range(len(source))] and len(set(names)) == len(names)
        kept = in_memory(source, 1.0, 0)
        assert [kept.name_of(index) for index in range(len(kept))] == names
