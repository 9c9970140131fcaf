"""Numbers drawn by chance from what weights decide, without a gradient for them, and given to further weights.

The derivative of a draw by its mean or its probability is 0 in PyTorch, and `sample()` of a distribution makes no graph
at all: what decides what is drawn cannot be told by what becomes of it. It can where the draw is written as a function
of them (Kingma & Welling 2014), as `rsample()` does, where a gradient is passed straight through, or where the
logarithm of its probability is weighed with what it led to (Williams 1992).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import losspath

DRAWS = {torch.normal, torch.bernoulli, Tensor.bernoulli}
_ENDS = {"normal", "bernoulli"}  # their nodes, at which every gradient ends
_FAR = 200  # nodes walked from one tensor


class Meeting(NamedTuple):
    """What was drawn is given to further parameters, in the call that this node is of."""

    node: Any
    behind: set[int]  # the parameters that decided what is drawn
    parameters: set[int]


class Draws:
    """`lost`: identities of parameters that decide what is drawn and are not told what becomes of it."""

    def __init__(self) -> None:
        self._meetings: list[Meeting] = []
        self._told = set[int]()
        self._behind = WeakTensorKeyDictionary()  # of what was drawn, and made of it: the parameters that decided

    @property
    def lost(self) -> set[int]:
        """None where those that are given the draws decide draws themselves, as in a wake-sleep pair."""
        lost = set[int]().union(*(each.behind for each in self._meetings))
        met = set[int]().union(*(each.parameters for each in self._meetings))
        return set[int]() if met <= lost else lost - self._told

    def follow(self, func: Callable, given: Sequence[Tensor], results: Sequence[Tensor], parameters: set[int]) -> None:
        """One call; `parameters`: those of the model among what it was given that are trained."""
        if func in DRAWS:
            behind = set[int]().union(*(_deciding(each) for each in given))
        else:
            behind = set[int]().union(*(self._behind[each] for each in given if each in self._behind))
            if behind and parameters and torch.is_grad_enabled():
                if behind.isdisjoint(parameters.union(*map(_reached, given))):  # else a chain, as a Boltzmann machine's
                    self._meetings += [Meeting(losspath.history(each), behind, parameters) for each in results]
                return
            if parameters and self._meetings and torch.is_grad_enabled():  # told in another way, as by rsample()
                self._told.update(*map(_reached, given))
            others = (_reached(each) for each in given if behind and each not in self._behind)
            if not behind.isdisjoint(set[int]().union(*others)):  # its probability is weighed
                self._told |= behind
        for result in results if behind else ():
            self._behind[result] = behind

    def ended(self, loss: Any) -> None:
        """What comes of a draw may be a target or a picture, and no part of the loss."""
        seen = set[Any]()
        for _ in losspath.walk(losspath.history(loss), seen, losspath.FAR):
            pass
        if 0 < len(seen) < losspath.FAR:
            self._meetings = [each for each in self._meetings if each.node in seen]


def _deciding(x: Tensor) -> set[int]:
    """Also of a view that was made without a graph."""
    return _reached(x) | (set() if x._base is None else _reached(x._base))


def _reached(x: Tensor) -> set[int]:
    """Parameters that a gradient comes to from here."""
    start = losspath.history(x)
    nodes = losspath.walk(None if _ends(start) else start, set(), _FAR, _ends)
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


def _ends(node: Any) -> bool:
    return node is not None and losspath.function_of(node) in _ENDS
