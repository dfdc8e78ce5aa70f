"""One step of a fit, and the order of its images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from depthjepa.faults import RunStopped
from depthjepa.fitting import update, walks

TARGET = torch.tensor([3.0, -4.0])


def lines() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))]


def descent(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [each]} for each in parameters], lr=99.0)


def losses(parameters: list[nn.Parameter]) -> Iterator[Tensor]:
    for parameter in parameters:
        yield (parameter - TARGET).square().sum() / 2


@torch.no_grad()
def test_each_group_steps_at_its_rate_down_its_own_loss() -> None:
    first, second = parameters = lines()
    total = update(descent(parameters), losses(parameters), [0.5, 0.25])
    assert first.tolist() == [1.5, -2.0]
    assert second.tolist() == [1.5, -0.25]
    assert float(total) == pytest.approx((9 + 16 + 4 + 25) / 2)


def test_one_rate_holds_for_all_groups_and_the_last_steps_gradient_is_forgotten() -> None:
    first, second = parameters = lines()
    optimizer = descent(parameters)
    for _ in range(2):
        update(optimizer, losses(parameters), 0.5)
    assert first.tolist() == [2.25, -3.0]
    assert second.tolist() == [2.5, -2.75]


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    """(3, -4) has norm 5 and (2, -5) sqrt(29): together sqrt(54)."""
    parameters = lines()
    before = torch.cat(lines()).detach()
    update(descent(parameters), losses(parameters), 1.0, clip=0.1)
    moved = torch.cat([each.detach() for each in parameters]) - before
    assert float(moved.norm()) == pytest.approx(0.1, rel=1e-4)
    assert (moved / moved.norm()).tolist() == pytest.approx([each / 54**0.5 for each in (3, -4, 2, -5)], rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    """The root at 0: its value is a number, its slope is none."""
    parameters = lines()
    with pytest.raises(RunStopped, match=r"the loss is 1\.41, and the norm of its gradient (inf|nan)"):
        update(descent(parameters), (each.square().sum().sqrt() for each in parameters), 1.0, clip=0.1)
    assert [each.tolist() for each in parameters] == [each.tolist() for each in lines()]


def test_a_graph_is_gone_before_the_next_loss_is_asked_for() -> None:
    parameters = lines()

    def watched() -> Iterator[Tensor]:
        for number, loss in enumerate(losses(parameters)):
            assert [each.grad is not None for each in parameters] == [place < number for place in range(2)]
            yield loss

    update(descent(parameters), watched(), 1.0)


def test_as_many_rates_as_groups() -> None:
    parameters = lines()
    with pytest.raises(ValueError, match="shorter"):
        update(descent(parameters), losses(parameters), [1.0])


def test_walks_visit_each_place_once_an_epoch_in_an_order_of_seed_and_epoch() -> None:
    places = torch.arange(5, 25)
    first, second = walks(places, 2, seed=0, stream="fit")
    assert sorted(first.tolist()) == sorted(second.tolist()) == places.tolist()
    again, other = next(walks(places, 1, seed=0, stream="fit")), next(walks(places, 1, seed=1, stream="fit"))
    assert first.equal(again)
    assert not first.equal(second)
    assert not first.equal(other)
