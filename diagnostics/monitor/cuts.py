"""Where a forward cuts its graph: the parameters behind a tensor that is detached and goes on into a layer.

Into the same layer again it is the state of a recurrence. Where it is cut at every step and the loss sees the last one
alone, only that one is trained.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import losspath

CUTS = {torch.detach, torch.detach_, Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore
LONGEST = 2000  # nodes walked from one cut, and a tenth of what is walked in all
STEPS = 4  # of a recurrence: an answer may be given back once or twice on purpose (self-conditioning, recycling)


class Cuts:
    """`lost`: identities of parameters. A target, or what is only logged, meets no parameter again. `steps`: of those
    of a recurrence that is cut at each of so many steps, of which the last alone is behind the result."""

    def __init__(self) -> None:
        self.lost, self.steps = set[int](), dict[int, int]()
        self._used, self._again = Counter[int](), Counter[int]()  # calls with a parameter; given what it was cut from
        self._behind = WeakTensorKeyDictionary()  # of tensors without a graph: the parameters they were computed from
        self._left = 10 * LONGEST  # nodes to be walked: a loop may detach its state at every step

    def before(self, x: Any) -> set[int]:
        """What is about to be cut off with a tensor, which may be detached in place."""
        seen: set[Any] = set()
        nodes = losspath.walk(losspath.history(x), seen, min(LONGEST, self._left))
        found = {id(node.variable) for node in nodes if hasattr(node, "variable")}
        self._left -= len(seen)
        return found

    def follow(self, given: Iterable[Tensor], results: Iterable[Tensor], cut: set[int], meets_parameters: bool) -> None:
        """One call: `cut` of its input by itself, or by what was detached before."""
        given = list(given)
        behind = cut.union(*(self._behind[tensor] for tensor in given if tensor in self._behind))
        if torch.is_grad_enabled():
            parameters = {id(each) for each in given if isinstance(each, nn.Parameter) and each.requires_grad}
            self._used.update(parameters)
            self._again.update(parameters & behind)
        if behind and meets_parameters:
            self.lost |= behind
        elif behind:
            for result in results:
                self._behind[result] = behind

    def ended(self, result: Any) -> None:
        """The forward, of the model or up to the loss, with this result."""
        cut = {each for each, times in self._again.items() if STEPS <= self._used[each] <= times + 1}
        if not cut or not isinstance(result, Tensor):
            return
        seen, ways = set[Any](), Counter[int]()
        for node in losspath.walk(result.grad_fn, seen, LONGEST):
            ways.update(id(below.variable) for below, _ in node.next_functions if hasattr(below, "variable"))
        if len(seen) < LONGEST:
            self.steps = {each: self._used[each] for each in cut if ways[each] == 1}
