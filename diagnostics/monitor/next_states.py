"""Whether the states that a value is read at, and the next ones whose best value it is to be near, are the same.

Source: Watkins & Dayan 1992: Q(s, a) goes to r + gamma max Q(s', a').
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions

MOST = 16  # calls of first layers that are told apart
LARGEST = 1 << 22  # numbers in a batch of states that is held
_LAYERS = functions.LINEAR | functions.CONVOLUTIONS


class NextStates:
    """Of one forward. A network is told by its first layer, so that a copy that is not watched is seen as well."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []  # that a first layer was given
        self._behind = WeakTensorKeyDictionary()  # of tensors: which of these they were computed from
        self._read, self._best = set[int](), set[int]()

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        given = list(functions.tensors((*args, *kwargs.values())))
        behind = frozenset[int]().union(*(self._behind[each] for each in given if each in self._behind))
        if not behind and func in _LAYERS and given and len(self._states) < MOST and given[0].numel() <= LARGEST:
            behind = frozenset([len(self._states)])
            self._states.append(given[0].detach())
        if not behind:
            return
        for result in functions.tensors((out,)):
            self._behind[result] = behind
        if func in functions.BEST and not given[0].requires_grad:
            self._best |= behind
        elif _picks(func, args) and given[0].requires_grad:
            self._read |= behind

    def are_the_states(self) -> bool:
        """Two tensors that hold the same numbers: what is given to two networks on purpose is one tensor."""
        pairs = [(self._states[one], self._states[two]) for one in self._read for two in self._best if one != two]
        return any(a.data_ptr() != b.data_ptr() and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _picks(func: Callable, args: tuple) -> bool:
    """One number of each row, by its place."""
    if func in functions.PICKING:
        return True
    index = args[1] if func is Tensor.__getitem__ and len(args) > 1 else ()
    return isinstance(index, tuple) and any(isinstance(x, Tensor) and x.dtype == torch.long for x in index)
