"""Whether the states that a value is read at, and the next ones whose best value it is to be near, are the same.

Source: Watkins & Dayan 1992: Q(s, a) goes to r + gamma max Q(s', a').
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor import functions
from diagnostics.monitor.states import States


class NextStates:
    """Of one forward."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._read, self._best = set[int](), set[int]()

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if func in functions.BEST or _picks(func, args):
            given = list(functions.tensors((*args, *kwargs.values())))
            behind = self._states.behind(given)
            if func in functions.BEST and not given[0].requires_grad:
                self._best |= behind
            elif func not in functions.BEST and given[0].requires_grad:
                self._read |= behind

    def are_the_states(self) -> bool:
        """Two tensors that hold the same numbers: what is given to two networks on purpose is one tensor."""
        given = self._states.given
        pairs = [(given[one], given[two]) for one in self._read for two in self._best if one != two]
        return any(a.data_ptr() != b.data_ptr() and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _picks(func: Callable, args: tuple) -> bool:
    """One number of each row, by its place."""
    if func in functions.PICKING:
        return True
    index = args[1] if func is Tensor.__getitem__ and len(args) > 1 else ()
    return isinstance(index, tuple) and any(isinstance(x, Tensor) and x.dtype == torch.long for x in index)
