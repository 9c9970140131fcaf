"""How many of their periods the sines of hidden layers run through.

Sitzmann et al. 2020 draw the weights of such layers so that what goes into a sine has a standard deviation of 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions, likeness

_LAYERS = functions.LINEAR | functions.INNER
_SCALING = functions.GATING | functions.DIVIDING | functions.LAYOUT
_CARRYING = (
    _SCALING | functions.ADDING | functions.SUBTRACTING | functions.JOINING | functions.DROPOUTS | functions.NORMS
)


class Periods:
    """`spreads`: of each sine between two layers, the first of which is given sines itself, the standard deviation of
    its angle over a batch, in radians, as the median over its units. Those of the first layer choose frequencies; a
    sine that goes into no layer is an answer."""

    def __init__(self) -> None:
        self._waves = WeakTensorKeyDictionary()  # what comes of sines, with the spread of a hidden one's angle
        self._angles = WeakTensorKeyDictionary()  # what a layer makes of sines, times constants
        self._told: dict[int, Tensor] = {}

    @property
    def spreads(self) -> list[float]:
        return [float(each) for each in self._told.values()]

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        given = [x for x in functions.tensors((*args, *kwargs.values())) if x in self._waves or x in self._angles]
        results = list(functions.tensors((out,)))
        if func in functions.WAVES:
            angle = next((x for x in given if x in self._angles), None)
            for each in results:
                self._waves[each] = None if angle is None else self._angles[angle]
        if not given:
            return
        sines = [x for x in given if x in self._waves]
        if func in _LAYERS and sines:
            spreads = [spread for x in sines if (spread := self._waves[x]) is not None]
            self._told |= {id(spread): spread for spread in spreads}
            for each in results:
                self._angles[each] = _spread(each)
        elif func in _SCALING and not sines:
            for each in results:
                self._angles[each] = _spread(each)
        elif func in _CARRYING and sines:
            for each in results:
                self._waves[each] = self._waves[sines[0]]


def _spread(x: Tensor) -> Tensor | None:
    if not x.is_floating_point() or x.dim() < 2 or x.shape[-1] < 2 or x.numel() < likeness.FEWEST * x.shape[-1]:
        return None
    return x.detach().reshape(-1, x.shape[-1]).float().std(0).median()
