"""A device that is not there: its tensors compute on the CPU, and refuse to meet those that lie there.

It goes by the name of `meta`, the one device without memory that PyTorch has everywhere. What a real one refuses is
refused: arithmetic of tensors on two devices, unless one of them is a single number, and an index that lies on the
device where what it picks from does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

ELSEWHERE = torch.device("meta")
PICKING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
MOVING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _There(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _There:
        made: _There = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=ELSEWHERE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class Elsewhere(TorchDispatchMode):
    """While it is entered, tensors can be made on and moved to `ELSEWHERE`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: Any) -> Any:
    given = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in given if isinstance(each, _There)]
    here = [each for each in given if not isinstance(each, _There) and each.dim() > 0]
    if function in PICKING:
        assert isinstance(args[0], _There) or not there, f"{function}: an index on the device picks from the CPU"
    elif function not in MOVING:
        assert not (there and here), f"{function}: tensors on two devices"
    device = kwargs.get("device")
    kwargs_here = kwargs | ({"device": torch.device("cpu")} if device is not None else {})
    result = function(*tree_map(_held, args), **tree_map(_held, kwargs_here))
    if not (there if device is None else torch.device(device) == ELSEWHERE):
        return result
    made = tree_map(lambda each: _There(each) if isinstance(each, Tensor) else each, result)
    return return_and_correct_aliasing(function, args, kwargs, made) if there else made


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _There) else value
